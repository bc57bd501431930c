//! The `log` crate's backend: records go to the console through the domain's Log channel.
//!
//! Logging never blocks: what does not fit the ring is counted and the count goes with the next record
//! that does. Until there is a channel (init before it built the console), and where the channel is
//! broken, records of a domain that holds the early serial log go there.

use core::fmt::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};
use proto::abi::Slot;
use proto::channel::ChannelInfo;
use proto::console::{self, LogRecord};
use proto::text::Text;
use spin::Mutex;

use crate::channel::{ChannelError, Client};
use crate::{sys, time};

/// Where records go.
struct Sink {
    channel: Option<Client<console::Log>>,
    /// The early serial log's capability, and what goes there in spite of a channel.
    serial: Option<(Slot, LevelFilter)>,
    lost: u32,
}

struct Logger(Mutex<Sink>);

static LOGGER: Logger = Logger(Mutex::new(Sink { channel: None, serial: None, lost: 0 }));

/// Installs the logger; records of more than `level` are dropped at once.
fn install(level: LevelFilter) {
    // A second call keeps the logger and changes the level.
    let _is_installed = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Sends records to the console from now on.
///
/// # Errors
/// The channel's description does not fit.
pub fn to_channel(info: &ChannelInfo, level: LevelFilter) -> Result<(), ChannelError> {
    let channel = Client::connect(info)?;
    LOGGER.0.lock().channel = Some(channel);
    install(level);
    Ok(())
}

/// Writes records to the early serial log: all while there is no channel, then those up to `also`.
pub fn to_serial(log: Slot, also: LevelFilter, level: LevelFilter) {
    LOGGER.0.lock().serial = Some((log, also));
    install(level);
}

/// Collects a record's text and sends it piece by piece, so that no line is too long for a slot.
struct Pieces<'a> {
    sink: &'a mut Sink,
    level: Level,
    text: Text<228>,
}

impl Pieces<'_> {
    fn send(&mut self) {
        let text = core::mem::take(&mut self.text);
        self.sink.put(self.level, text);
    }
}

impl Write for Pieces<'_> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for c in s.chars() {
            if c == '\n' {
                self.send();
            } else if self.text.push(c).is_err() {
                self.send();
                let _fits = self.text.push(c);
            }
        }
        Ok(())
    }
}

impl Sink {
    fn put(&mut self, level: Level, text: Text<228>) {
        if let Some((slot, also)) = self.serial
            && (self.channel.is_none() || level <= also)
        {
            serial_line(slot, &text);
        }
        let Some(channel) = &mut self.channel else { return };
        let record = LogRecord { level: level as u8, tsc: time::tsc(), lost: self.lost, text };
        match channel.send(&record) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost = self.lost.saturating_add(1),
        }
    }
}

/// Writes a line to the early serial log.
fn serial_line(slot: Slot, text: &str) {
    for chunk in text.as_bytes().chunks(8) {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(chunk) {
            *to = *from;
        }
        let _no_right = sys::log_write(slot, u64::from_le_bytes(bytes), chunk.len() as u64);
    }
    let _no_right = sys::log_write(slot, u64::from(b'\n'), 1);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A panic inside of the logger must not wait for itself.
        let Some(mut sink) = self.0.try_lock() else { return };
        let mut pieces = Pieces { sink: &mut sink, level: record.level(), text: Text::new() };
        let _never = pieces.write_fmt(*record.args());
        pieces.send();
        if let Some(channel) = &mut sink.channel {
            channel.flush();
        }
    }

    fn flush(&self) {}
}
