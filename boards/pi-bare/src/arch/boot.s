// From the firmware's hand-over to Rust, for every core.
//
// The firmware starts core 0 here at EL2 with the MMU off, and keeps the others waiting until an address appears in the
// spin table (see `cores.rs`), to which they then jump. Until the MMU is on, memory is device memory to the CPU: every
// access must be aligned, and there are no exclusive accesses.

.equ STACK, 0x20000
.equ EXCEPTION_STACK, 0x2000
.equ PAGE, 4096

.section .text.boot, "ax"
.global _start
_start:
    // Some loaders start all cores here.
    mrs     x0, mpidr_el1
    and     x0, x0, #3
    cbnz    x0, park

    adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
0:  cmp     x1, x2
    b.hs    1f
    stp     xzr, xzr, [x1], #16
    b       0b
1:  adrp    x19, main_core
    add     x19, x19, :lo12:main_core
    b       enter

.global start_other_core
start_other_core:
    adrp    x19, other_core
    add     x19, x19, :lo12:other_core
    b       enter

// Waits for ever: no interrupt is enabled, and an event changes nothing.
.global park
park:
    wfe
    b       park

// Goes to EL1 with floating point on, takes this core's stacks and calls x19 with the core's number.
enter:
    mrs     x0, CurrentEL
    lsr     x0, x0, #2
    cmp     x0, #2
    b.hi    park                    // EL3: no firmware that Elapid knows leaves us there
    b.lo    at_el1

    // EL1 is AArch64; its timer is not trapped and not offset; nor is floating point.
    mov     x0, #(1 << 31)
    msr     hcr_el2, x0
    mov     x0, #3
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr
    mov     x0, #0x33ff
    msr     cptr_el2, x0
    msr     hstr_el2, xzr
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    // MMU and caches off, the bits that must be 1.
    ldr     x0, =0x30d00800
    msr     sctlr_el1, x0
    // EL1, all interrupts masked.
    mov     x0, #0x3c5
    msr     spsr_el2, x0
    adr     x0, at_el1
    msr     elr_el2, x0
    eret

at_el1:
    mov     x0, #(3 << 20)
    msr     cpacr_el1, x0
    adrp    x0, exception_vectors
    add     x0, x0, :lo12:exception_vectors
    msr     vbar_el1, x0
    msr     spsel, #1
    isb
    mrs     x0, mpidr_el1
    and     x0, x0, #3
    add     x3, x0, #1
    // Exceptions have a stack of their own, so that an overflown one can be reported.
    adrp    x1, __exception_stacks
    add     x1, x1, :lo12:__exception_stacks
    mov     x2, #EXCEPTION_STACK
    madd    x1, x2, x3, x1
    mov     sp, x1
    msr     spsel, #0
    adrp    x1, __stacks
    add     x1, x1, :lo12:__stacks
    ldr     x2, =(PAGE + STACK)
    madd    x1, x2, x3, x1
    mov     sp, x1
    // The end of every chain of frames.
    mov     x29, xzr
    mov     x30, xzr
    blr     x19
    b       park

// Waits until the u64 at x0 is no longer x1, and returns it. Whoever changes it sends an event.
.section .idle, "ax"
.global idle_while_equal
idle_while_equal:
    ldar    x2, [x0]
    cmp     x2, x1
    b.ne    2f
    wfe
    b       idle_while_equal
2:  mov     x0, x2
    ret

// All exceptions are fatal: the registers are saved on the exception stack, and Rust prints them.
.macro VECTOR kind
.balign 128
    sub     sp, sp, #(34 * 8)
    stp     x0, x1, [sp, #(0 * 8)]
    mov     x0, #\kind
    b       save
.endm

.section .text.vectors, "ax"
.balign 2048
.global exception_vectors
exception_vectors:
    VECTOR 0
    VECTOR 1
    VECTOR 2
    VECTOR 3
    VECTOR 4
    VECTOR 5
    VECTOR 6
    VECTOR 7
    VECTOR 8
    VECTOR 9
    VECTOR 10
    VECTOR 11
    VECTOR 12
    VECTOR 13
    VECTOR 14
    VECTOR 15

save:
    stp     x2, x3, [sp, #(2 * 8)]
    stp     x4, x5, [sp, #(4 * 8)]
    stp     x6, x7, [sp, #(6 * 8)]
    stp     x8, x9, [sp, #(8 * 8)]
    stp     x10, x11, [sp, #(10 * 8)]
    stp     x12, x13, [sp, #(12 * 8)]
    stp     x14, x15, [sp, #(14 * 8)]
    stp     x16, x17, [sp, #(16 * 8)]
    stp     x18, x19, [sp, #(18 * 8)]
    stp     x20, x21, [sp, #(20 * 8)]
    stp     x22, x23, [sp, #(22 * 8)]
    stp     x24, x25, [sp, #(24 * 8)]
    stp     x26, x27, [sp, #(26 * 8)]
    stp     x28, x29, [sp, #(28 * 8)]
    mrs     x1, sp_el0
    stp     x30, x1, [sp, #(30 * 8)]
    mov     x1, sp
    b       exception
