//! What a caller is told while a file is packed.

/// How packing goes on, and whether it should.
pub trait Progress: Sync {
    /// `bytes` more bytes of the file are written.
    fn advance(&self, bytes: u64);
    /// `bytes` bytes of the file are there, written by an earlier attempt.
    fn skip(&self, bytes: u64) {
        self.advance(bytes);
    }
    /// All is packed once more, into a file of so many bytes.
    fn restart(&self, _bytes: u64) {}
    /// Whether to give up.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Says nothing.
impl Progress for () {
    fn advance(&self, _bytes: u64) {}
}
