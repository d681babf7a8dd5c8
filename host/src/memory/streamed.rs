//! A model file in storage: what of it is read when it is opened.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use elapid_core::format::{FormatError, Header, Layout, Section, checksum};
use elapid_core::source::{Fault, SliceSource, SourceError};

use super::plan::PROGRAM;
use super::plan::Plan;
use super::storage::{Log, Storage, read_range};
use super::{Map, Streamer};
use crate::Error;
use crate::machine::Drive;
use crate::options::ModelOptions;

/// A model file in storage. Its header, tables and data sections are in memory, checked; its weights are not.
pub(crate) struct Streamed {
    storage: Arc<dyn Storage>,
    /// The file, where it can be mapped.
    path: Option<PathBuf>,
    map: OnceLock<Map>,
    checksums: Arc<[u32]>,
    data: [Vec<u8>; 4],
    log: Arc<Log>,
}

const DATA: [Section; 4] =
    [Section::Tokenizer, Section::ChatTemplate, Section::RoleTable, Section::Generation];

impl Streamed {
    /// Reads and checks all but the weights. `name` is the model's in messages; `cap` is what the process may take, and `least`
    /// gives the least cap for a model.
    pub(crate) fn open(
        name: &str,
        storage: Arc<dyn Storage>,
        path: Option<PathBuf>,
        cap: u64,
        least: impl FnOnce(&Layout) -> u64,
    ) -> Result<(Self, Header), Error> {
        let log = Arc::new(Log::default());
        let format = |cause| Error::Format { model: name.into(), cause };
        let size = storage.size().map_err(Error::file(name, "read"))?;
        let fault = |section, block, offset, fault| {
            Error::source(name, SourceError { section, block, offset, fault })
        };
        let read = |section, block, range: Range<u64>| {
            let start = range.start;
            read_range(&*storage, range, &log)?.map_err(|cause| fault(section, block, start, cause))
        };

        let fixed = read(Section::Checksums, 0, 0..size.min(Header::BYTES as u64))?;
        let header = Header::parse(&fixed).map_err(format)?;
        let layout = header.layout();
        if size != layout.file_bytes() {
            return Err(format(FormatError::Length { have: size, need: layout.file_bytes() }));
        }
        header.check_table(&read(Section::Checksums, 0, 0..layout.header_bytes())?).map_err(format)?;
        let place = layout.section(Section::Checksums);
        let data_bytes =
            DATA.iter().map(|s| layout.section(*s).length).sum::<u64>().saturating_add(place.length);
        // Within what every program takes, they are read all the same: what else is asked for then says what the least is.
        if data_bytes > cap.max(PROGRAM) {
            return Err(Error::Cap { model: name.into(), cap, least: least(layout), smaller_state: None });
        }
        let table = read(Section::Checksums, 0, place.offset..place.offset + place.length)?;
        header.check_checksums(&table).map_err(format)?;
        let checksums: Arc<[u32]> =
            table.as_chunks().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect::<Vec<_>>().into();

        let mut data = [const { Vec::new() }; 4];
        for (data, section) in data.iter_mut().zip(DATA) {
            let place = layout.section(section);
            *data = read(section, 0, place.offset..place.offset + place.length)?;
            for block in 0..place.blocks {
                let Some(block_place) = layout.block(section, block) else { continue };
                let from = (block_place.offset - place.offset) as usize;
                let bytes = data.get(from..from + block_place.length as usize).unwrap_or_default();
                if checksums.get(block_place.checksum as usize) != Some(&checksum(bytes)) {
                    return Err(fault(section, block, block_place.offset, Fault::Checksum));
                }
            }
        }
        Ok((Self { storage, path, map: OnceLock::new(), checksums, data, log }, header))
    }

    /// A data section; empty if there is none.
    pub(crate) fn data(&self, section: Section) -> &[u8] {
        DATA.iter().zip(&self.data).find(|(known, _)| **known == section).map_or(&[], |(_, data)| data)
    }

    /// The whole file, if it was mapped after all.
    pub(crate) fn map(&self) -> Option<&Map> {
        self.map.get()
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Whether the file can be mapped.
    pub(crate) fn can_map(&self) -> bool {
        self.path.is_some()
    }

    /// What the file lies on.
    pub(crate) fn drive(&self) -> Drive {
        self.path.as_deref().map_or(Drive::Other, Drive::of)
    }

    /// Maps the file, which must still be the one that was opened: `name` is the model's in messages.
    pub(crate) fn map_whole(&self, name: &str, header: &Header) -> Result<(), Error> {
        if let (Some(path), None) = (&self.path, self.map.get())
            && let Some(map) = Map::open(path)?
        {
            // Checks the length and both tables.
            let checked = SliceSource::new(&map, header, &mut []).map(drop);
            checked.map_err(|cause| Error::Format { model: name.into(), cause })?;
            let _ = self.map.set(map);
        }
        Ok(())
    }

    /// Begins to read.
    pub(crate) fn streamer(
        &self,
        header: &Header,
        options: &ModelOptions,
        plan: &Plan,
    ) -> Result<Streamer, Error> {
        let (checksums, storage) = (Arc::clone(&self.checksums), Arc::clone(&self.storage));
        let log = Arc::clone(&self.log);
        // What is read directly must be aligned to pages.
        let plain = options.plain_reads || header.layout().config().compact;
        Streamer::new(header.layout(), checksums, storage, log, options.verify, plan, plain)
    }
}
