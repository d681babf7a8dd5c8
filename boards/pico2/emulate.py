"""Runs the program of this folder, with its console on UART 0, on an emulated RP2350.

    python3 emulate.py PROGRAM [MODEL]

The core is QEMU's Cortex-M33, as the package `unicorn` has it. The chip's registers are modelled here as far as the program uses
them: clocks and PLLs that are stable at once, a UART, a timer, and memory for the rest; addresses and fields are those of the
RP2350 datasheet (2.2, and the chapter of each). There is no USB, no PSRAM, and the watchdog never bites.

Standard input and output are the console. The exit code is 0 after EOT (the program ended), 1 after CAN (it failed), 2 after a
fault of the emulated core.
"""

import collections
import os
import struct
import sys
import threading
import time

from unicorn import UC_ARCH_ARM, UC_HOOK_MEM_INVALID, UC_MODE_MCLASS, UC_MODE_THUMB, Uc, UcError
from unicorn.arm_const import UC_ARM_REG_LR, UC_ARM_REG_MSP, UC_ARM_REG_PC, UC_CPU_ARM_CORTEX_M33

FLASH, RAM, MODEL = 0x10000000, 0x20000000, 0x10100000
FLASH_BYTES = 4 << 20  # a Pico 2's
APB, SIO, PPB = 0x40000000, 0xD0000000, 0xE0000000
EOT, CAN = b"\x04", b"\x18"
YIELD = b"\x10\xbf"

CLOCKS, RESETS, XOSC, UART0, TIMER0 = 0x10000, 0x20000, 0x48000, 0x70000, 0xB0000
PLLS = (0x50000, 0x58000)


class Chip:
    """Registers between 0x40000000 and 0x40200000, with their aliases that flip, set and clear bits."""

    def __init__(self, console):
        self.kept = collections.defaultdict(int)
        # After reset every block is held in reset.
        self.kept[RESETS] = 0x1FFFFFFF
        self.console = console
        self.typed = collections.deque()
        self.start = time.monotonic()
        self.high = 0

    def read(self, _uc, offset, _size, _data):
        at = offset & ~0x3000
        if at == RESETS + 8:  # RESET_DONE
            return ~self.kept[RESETS] & 0x1FFFFFFF
        if at in (CLOCKS + 0x38, CLOCKS + 0x44):  # CLK_REF_SELECTED, CLK_SYS_SELECTED: one bit for the source
            return 1 << (self.kept[at - 8] & 3)
        if at == XOSC + 4:  # STATUS: stable, enabled
            return 1 << 31 | 1 << 12
        if at in PLLS:  # CS: locked
            return self.kept[at] | 1 << 31
        if at == UART0:  # DR
            return self.typed.popleft() if self.typed else 0
        if at == UART0 + 0x18:  # FR: nothing is left to send; whether something was typed
            return 1 << 7 | (0 if self.typed else 1 << 4)
        if at in (TIMER0 + 0x0C, TIMER0 + 0x28):  # TIMELR, TIMERAWL, in microseconds
            now = int((time.monotonic() - self.start) * 1e6)
            self.high = now >> 32
            return now & 0xFFFFFFFF
        if at in (TIMER0 + 0x08, TIMER0 + 0x24):  # TIMEHR, TIMERAWH
            return self.high
        return self.kept[at]

    def write(self, uc, offset, _size, value, _data):
        at = offset & ~0x3000
        old = self.kept[at]
        self.kept[at] = (value, old ^ value, old | value, old & ~value)[offset >> 12 & 3] & 0xFFFFFFFF
        if at == UART0:
            byte = bytes([value & 0xFF])
            if byte in (EOT, CAN):
                self.console.code = 0 if byte == EOT else 1
                uc.emu_stop()
                return
            sys.stdout.buffer.write(byte)
            sys.stdout.buffer.flush()


class Console:
    """What the program left to say at its end."""

    code = None


def segments(elf):
    """The addresses and bytes that an ELF file for 32-bit ARM stores in memory."""
    if elf[:7] != b"\x7fELF\x01\x01\x01":
        sys.exit("not an ELF file for a 32-bit little-endian machine")
    (table,) = struct.unpack_from("<I", elf, 28)
    size, count = struct.unpack_from("<HH", elf, 42)
    for i in range(count):
        kind, offset, _, physical, stored, _, _, _ = struct.unpack_from("<8I", elf, table + i * size)
        if kind == 1 and stored:
            yield physical, elf[offset : offset + stored]


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    console = Console()
    chip = Chip(console)
    uc = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
    uc.ctl_set_cpu_model(UC_CPU_ARM_CORTEX_M33)
    uc.mem_map(FLASH, FLASH_BYTES)
    uc.mem_map(RAM, 520 << 10)
    uc.mmio_map(APB, 0x200000, chip.read, None, chip.write, None)
    # Spin locks are free; pins are not looked at.
    uc.mmio_map(SIO, 0x1000, lambda _uc, at, _size, _data: 1 if at >= 0x100 else 0, None, lambda *_: None, None)
    uc.mem_map(PPB, 0x100000)
    for at, stored in segments(open(sys.argv[1], "rb").read()):
        uc.mem_write(at, stored)
    if len(sys.argv) == 3:
        model, room = open(sys.argv[2], "rb").read(), FLASH_BYTES - (MODEL - FLASH)
        if len(model) > room:
            sys.exit(f"{sys.argv[2]} has {len(model)} bytes, and the flash has room for {room}")
        uc.mem_write(MODEL, model)

    def invalid(uc, _access, address, _size, _value, _data):
        sys.stdout.flush()
        print(f"nothing is at {address:#010x}, which {uc.reg_read(UC_ARM_REG_PC):#010x} accesses", file=sys.stderr)
        return False

    uc.hook_add(UC_HOOK_MEM_INVALID, invalid)

    def type_in():
        while typed := os.read(0, 4096):
            chip.typed.extend(typed)

    threading.Thread(target=type_in, daemon=True).start()
    # The boot ROM starts what the vector table at the beginning of flash says.
    stack, reset = struct.unpack("<II", uc.mem_read(FLASH, 8))
    uc.reg_write(UC_ARM_REG_MSP, stack)
    uc.reg_write(UC_ARM_REG_LR, 0xFFFFFFFF)
    at = reset
    while console.code is None:
        try:
            uc.emu_start(at | 1, 0xFFFFFFFE)
        except UcError as error:
            at = uc.reg_read(UC_ARM_REG_PC)
            # The emulator leaves at each of these: it has nothing else to run.
            if bytes(uc.mem_read(at - 2, 2)) != YIELD:
                print(f"{error} at {at:#010x}", file=sys.stderr)
                console.code = 2
    sys.stdout.flush()
    os._exit(console.code)


if __name__ == "__main__":
    main()
