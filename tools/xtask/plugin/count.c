/* Counts the guest's instructions: a TCG plugin of QEMU, built and used by `cargo xtask count`.
 *
 * Every block adds its length when it begins, so a count is exact for programs that leave blocks only at their end;
 * one that is left early by a fault is counted whole. The total goes to QEMU's log (`-d plugin`) at the end.
 *
 * What it needs of qemu-plugin.h is declared here: Debian's QEMU comes without the header.
 * API is the plugin interface to ask for: 1 up to QEMU 8, 2 from QEMU 9 on.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
    void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block,
    void (*callback)(unsigned int cpu, void *data), int flags, void *data);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id,
    void (*callback)(qemu_plugin_id_t, void *), void *data);
extern void qemu_plugin_outs(const char *text);

#define PUBLIC __attribute__((visibility("default")))

PUBLIC int qemu_plugin_version = API;

/* Of all threads of the guest. */
static uint64_t total;

static void executed(unsigned int cpu, void *length)
{
    (void)cpu;
    __atomic_fetch_add(&total, (uint64_t)(uintptr_t)length, __ATOMIC_RELAXED);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    void *length = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, length);
}

static void ended(qemu_plugin_id_t id, void *data)
{
    char line[48];
    (void)id, (void)data;
    snprintf(line, sizeof line, "instructions: %" PRIu64 "\n", total);
    qemu_plugin_outs(line);
}

PUBLIC int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
