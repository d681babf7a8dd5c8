//! `core`'s float step alone, linked, so that its code can be measured: opening a packed file in memory, its checksums,
//! the step of every quantization, the logits; no tokenizer, no sampler, no console.
#![no_std]
#![no_main]

use core::hint::black_box;
use core::panic::PanicInfo;

use cortex_m_rt::entry;
use elapid_core::format::Header;
use elapid_core::kernels::{CortexM, Solo};
use elapid_core::model::{Model, Rows};
use elapid_core::source::SliceSource;
use static_cell::ConstStaticCell;

elapid_core::model! {
    mod tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../host/models/address-300k.elp");
}

static STATE: ConstStaticCell<tiny::State<f32>> = ConstStaticCell::new(tiny::State::new());
static SCRATCH: ConstStaticCell<tiny::Scratch> = ConstStaticCell::new(tiny::Scratch::new());
static CHECKED: ConstStaticCell<[u32; tiny::CHECKED]> = ConstStaticCell::new([0; tiny::CHECKED]);
static LOGITS: ConstStaticCell<[f32; tiny::VOCAB]> = ConstStaticCell::new([0.0; tiny::VOCAB]);

#[entry]
fn main() -> ! {
    let step = || {
        // SAFETY: never run; a memory that might be there.
        let file: &'static [u8] =
            black_box(unsafe { core::slice::from_raw_parts(0x6000_0000 as *const u8, 1 << 20) });
        let header = Header::parse(file).ok()?;
        let model = Model::float(header.layout(), CortexM::new(), &Solo);
        let mut source = SliceSource::new(file, &header, CHECKED.take()).ok()?;
        let (state, logits) = (STATE.take(), LOGITS.take());
        let mut session = state.session(&model, SCRATCH.take()).ok()?;
        model.forward(&mut session, &mut source, &[black_box(1)]).ok()?;
        model.logits(&mut session, &mut source, Rows::Last, logits).ok()?;
        black_box(logits);
        Some(())
    };
    black_box(step());
    stop()
}

fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    stop()
}
