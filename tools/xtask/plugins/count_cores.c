/* A QEMU plugin that counts the instructions of every core on its own, leaving out those that wait.
 *
 * Arguments: start=ADDRESS,end=ADDRESS: code in this range is waiting. At the end it writes a line `core N: INSTRUCTIONS`
 * for each core. QEMU's header is in no Debian package, so what is used of it is declared here (docs/devel/tcg-plugins). */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef API
#define API 1
#endif
#define CORES 64

typedef uint64_t plugin_id;
struct qemu_info;
struct qemu_plugin_tb;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
void qemu_plugin_outs(const char *);

__attribute__((visibility("default"))) int qemu_plugin_version = API;

static uint64_t counts[CORES];
static uint64_t wait_start, wait_end;

static void executed(unsigned core, void *instructions)
{
    /* A core's count is written by that core only. */
    if (core < CORES)
        counts[core] += (uintptr_t)instructions;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    uint64_t at = qemu_plugin_tb_vaddr(block);
    (void)id;
    if (at < wait_start || at >= wait_end)
        qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void ended(plugin_id id, void *data)
{
    char line[64];
    unsigned core;
    (void)id, (void)data;
    for (core = 0; core < CORES; core++) {
        if (counts[core]) {
            snprintf(line, sizeof line, "core %u: %" PRIu64 "\n", core, counts[core]);
            qemu_plugin_outs(line);
        }
    }
}

__attribute__((visibility("default")))
int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv)
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
