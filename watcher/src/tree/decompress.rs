//! Reading what is compressed, within a bound: what comes out may be so many bytes, and so many times what goes in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// zip.
    Zip,
    /// None of these: maybe a tar archive.
    Plain,
}

impl Form {
    /// By the first bytes of a file.
    pub fn of(begin: &[u8]) -> Self {
        match begin {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Self::Zip,
            _ => Self::Plain,
        }
    }
}

/// What is in a file that is compressed in one of these ways.
pub fn reader(form: Form, file: File) -> Box<dyn Read> {
    let file = BufReader::with_capacity(256 << 10, file);
    match form {
        Form::Gzip => Box::new(MultiGzDecoder::new(file)),
        Form::Xz => Box::new(XzReader::new(file, true)),
        Form::Zstd => Box::new(Frames { file, decoder: FrameDecoder::new(), is_open: false }),
        Form::Plain | Form::Zip => Box::new(file),
    }
}

/// All frames of a Zstandard file, one after the other.
struct Frames {
    file: BufReader<File>,
    decoder: FrameDecoder,
    /// Whether the decoder is within a frame.
    is_open: bool,
}

impl Read for Frames {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while !to.is_empty() {
            if self.is_open {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let one = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.file, one).map_err(io::Error::other)?;
                }
                let n = self.decoder.read(to)?;
                if n > 0 {
                    return Ok(n);
                }
                self.is_open = false;
            }
            if self.file.fill_buf()?.is_empty() {
                break;
            }
            match self.decoder.init(&mut self.file) {
                Ok(()) => self.is_open = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut (&mut self.file).take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(0)
    }
}

/// Reads no more than it may, and says what there was too much of.
pub struct Bounded<R> {
    from: R,
    left: u64,
    why: String,
}

impl<R> Bounded<R> {
    /// At most `most` bytes; `why` is the error beyond.
    pub fn new(from: R, most: u64, why: String) -> Self {
        Self { from, left: most, why }
    }

    /// How many bytes may still come.
    pub fn left(&self) -> u64 {
        self.left
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(to)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::new(io::ErrorKind::FileTooLarge, self.why.clone())),
        }
        Ok(n)
    }
}
