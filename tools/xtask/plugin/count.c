/* Counts the guest's instructions, of every core on its own: a TCG plugin of QEMU (tools/xtask/src/counter.rs builds it).
 *
 * Arguments: start=ADDRESS,end=ADDRESS: code in this range waits for work and is not counted. At the end QEMU's log
 * (`-d plugin`) gets a line `core N: INSTRUCTIONS` for each core, or for each thread of an emulated program.
 *
 * Every block adds its length when it begins, so a count is exact for programs that leave blocks only at their end; one
 * that is left early by a fault is counted whole.
 *
 * What it needs of qemu-plugin.h is declared here: Debian's QEMU comes without the header. API is the plugin interface to
 * ask for: 1 up to QEMU 8, 2 from QEMU 9 on.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
    void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block,
    void (*callback)(unsigned int cpu, void *data), int flags, void *data);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id,
    void (*callback)(qemu_plugin_id_t, void *), void *data);
extern void qemu_plugin_outs(const char *text);

#define PUBLIC __attribute__((visibility("default")))
/* Cores beyond these are counted together. */
#define CORES 64

PUBLIC int qemu_plugin_version = API;

static uint64_t counts[CORES];
static uint64_t wait_start, wait_end;

static void executed(unsigned int cpu, void *length)
{
    unsigned int place = cpu < CORES ? cpu : CORES - 1;
    __atomic_fetch_add(&counts[place], (uint64_t)(uintptr_t)length, __ATOMIC_RELAXED);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    uint64_t at = qemu_plugin_tb_vaddr(block);
    void *length = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);
    (void)id;
    if (at < wait_start || at >= wait_end)
        qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, length);
}

static void ended(qemu_plugin_id_t id, void *data)
{
    char line[64];
    unsigned int core;
    (void)id, (void)data;
    for (core = 0; core < CORES; core++) {
        if (counts[core]) {
            snprintf(line, sizeof line, "core %u: %" PRIu64 "\n", core, counts[core]);
            qemu_plugin_outs(line);
        }
    }
}

PUBLIC int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    int i;
    (void)info;
    for (i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "start=", 6))
            wait_start = strtoull(argv[i] + 6, NULL, 0);
        else if (!strncmp(argv[i], "end=", 4))
            wait_end = strtoull(argv[i] + 4, NULL, 0);
        else
            return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
