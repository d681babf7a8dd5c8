//! Session files: `--session`, `--load` and `--save`.

use std::cell::RefCell;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use elapid::{GenerateOptions, Message, SaveOptions, Session};
use elapid_files::open_regular;

use crate::error::Error;

/// How often a session is saved while a text is generated.
const EVERY: Duration = Duration::from_secs(10);

/// Options of sessions that outlive the program.
#[derive(clap::Args)]
pub(super) struct SessionArgs {
    /// Session file: continue from it if it exists, and save to it at the end, after Ctrl-C and every 10 seconds. Without a prompt,
    /// the text is continued as if it had not ended. Default: none
    #[arg(long, value_name = "FILE", conflicts_with_all = ["load", "save"])]
    session: Option<PathBuf>,
    /// Continue from this session file, which must exist and is not changed. Default: none
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Save the session to this file. Default: none
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Save an f32 state as f16: the file is smaller, and a text that continues from it differs
    #[arg(long)]
    save_half: bool,
    /// The file as it is now: locked, so that other programs can't continue from it.
    #[arg(skip)]
    locked: RefCell<Option<File>>,
}

impl SessionArgs {
    /// The file that is read, if there is one.
    fn source(&self) -> Option<&Path> {
        let known = self.session.as_deref().filter(|path| path.exists());
        known.or(self.load.as_deref())
    }

    /// The file that is written to, if there is one.
    pub(super) fn target(&self) -> Option<&Path> {
        self.session.as_deref().or(self.save.as_deref())
    }

    /// Whether there is a session to continue.
    pub(super) fn goes_on(&self) -> bool {
        self.source().is_some()
    }

    /// Reads the file, if there is one. From now on other programs can't continue from it. Returns the messages of a chat.
    pub(super) fn load(&self, session: &mut Session) -> Result<Option<Vec<Message>>, Error> {
        let Some(path) = self.source() else { return Ok(None) };
        let file = open_regular(path).map_err(|cause| Error::file(path, "read", cause))?;
        if self.session.is_some()
            && let Err(TryLockError::WouldBlock) = file.try_lock()
        {
            return Err(Error::Usage(format!(
                "{}: another program goes on from this session: wait for it, or give another file",
                path.display()
            )));
        }
        let loaded = session.load(path)?;
        if loaded.half {
            // Nobody may be there to read it.
            let _ = writeln!(
                io::stderr(),
                "note: {}: saved with --save-half: the text differs from one that was never saved",
                path.display()
            );
        }
        *self.locked.borrow_mut() = Some(file);
        Ok(Some(loaded.messages))
    }

    /// Keeps other programs from the file that was just saved.
    pub(super) fn lock_again(&self) {
        if let Some(path) = &self.session
            && let Ok(file) = open_regular(path)
        {
            // If another program was quicker, the file is that one's from here on.
            let _ = file.try_lock();
            *self.locked.borrow_mut() = Some(file);
        }
    }

    /// Saves while a text is generated.
    pub(super) fn autosave(&self, options: GenerateOptions) -> GenerateOptions {
        match self.target() {
            Some(path) => options.autosave(path, EVERY, self.options()),
            None => options,
        }
    }

    pub(super) fn options(&self) -> SaveOptions {
        SaveOptions::default().half(self.save_half)
    }

    /// Finishes a step that was interrupted, and saves.
    pub(super) fn save(&self, session: &mut Session) -> Result<(), Error> {
        let Some(path) = self.target() else { return Ok(()) };
        session.resume(&mut |_| ControlFlow::Continue(()))?;
        session.save(path, &self.options())?;
        self.lock_again();
        Ok(())
    }
}
