//! The two ends of a channel: [`Client`] (side A) and [`Server`] (side B) of a protocol.
//!
//! The peer is never trusted. A message is accepted only after the peer's greeting named the same
//! protocol, version and schema; it is copied out of the ring before it is decoded; anything that is no
//! message is a [`ChannelError`], after which the owner drops the channel and nothing else.
#![expect(unsafe_code, reason = "a channel's memory is at an address that init chose")]

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use core::sync::atomic::AtomicU64;

use proto::channel::{ChannelHeader, ChannelInfo, Mismatch, Protocol, Side};
use proto::counters::{MESSAGES_RECEIVED, MESSAGES_SENT, SIGNALS_SENT, SIGNALS_SUPPRESSED};
use proto::ring::{self, Consumer, Full, LENGTH, Producer, RingError};
use serde_bounds::{Decode, Encode};

use crate::{counters, sys};

/// What `Protocol` already promises of its messages, named for the two generic functions below.
mod serde_bounds {
    /// A message that can be written.
    pub trait Encode {
        /// Writes it to the front of `out`; its length.
        fn encode(&self, out: &mut [u8]) -> Option<usize>;
    }
    /// A message that can be read.
    pub trait Decode: Sized {
        /// Reads it from the front of `bytes`.
        fn decode(bytes: &[u8]) -> Option<Self>;
    }
    impl<T: serde::Serialize> Encode for T {
        #[inline]
        fn encode(&self, out: &mut [u8]) -> Option<usize> {
            postcard::to_slice(self, out).ok().map(|bytes| bytes.len())
        }
    }
    impl<T: serde::de::DeserializeOwned> Decode for T {
        #[inline]
        fn decode(bytes: &[u8]) -> Option<Self> {
            postcard::take_from_bytes(bytes).ok().map(|(value, _)| value)
        }
    }
}

/// Why a channel is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelError {
    /// The peer broke the ring's rules.
    Ring(RingError),
    /// The peer speaks something else.
    Mismatch(Mismatch),
    /// A slot does not hold a message of the protocol.
    Message,
    /// The peer sent before it said what it speaks.
    NoGreeting,
    /// The description of the channel does not fit the protocol; it names the field.
    Wiring(&'static str),
}

impl From<RingError> for ChannelError {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Message => Self::Message,
            RingError::Index => Self::Ring(error),
        }
    }
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(_) => f.write_str("the peer's ring index is impossible"),
            Self::Mismatch(mismatch) => mismatch.fmt(f),
            Self::Message => f.write_str("a slot does not hold a message of the protocol"),
            Self::NoGreeting => f.write_str("the peer sent before its greeting"),
            Self::Wiring(field) => write!(f, "the channel's {field} does not fit its protocol"),
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// No room. The peer signals when there is some again.
    Full,
    /// The peer broke the ring's rules: drop the channel.
    Ring(RingError),
    /// The peer speaks something else: drop the channel.
    Mismatch(Mismatch),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::Ring(_) => f.write_str("the peer's ring index is impossible"),
            Self::Mismatch(mismatch) => mismatch.fmt(f),
        }
    }
}

/// What both ends do alike.
struct End<P> {
    info: ChannelInfo,
    header: &'static ChannelHeader,
    tx: Producer<'static>,
    rx: Consumer<'static>,
    side: Side,
    has_greeting: bool,
    /// A slot's private copy, on its way in or out.
    slot: Box<[[u8; 8]]>,
    protocol: core::marker::PhantomData<fn(P) -> P>,
}

impl<P: Protocol> End<P> {
    fn connect(info: &ChannelInfo, side: Side) -> Result<Self, ChannelError> {
        if info.kind != P::KIND {
            return Err(ChannelError::Wiring("kind"));
        }
        if info.side != side {
            return Err(ChannelError::Wiring("side"));
        }
        let address = usize::try_from(info.rings.addr).unwrap_or(0);
        let is_aligned = address.is_multiple_of(align_of::<ChannelHeader>());
        if info.rings.len != P::CHANNEL_SIZE as u64 || address == 0 || !is_aligned {
            return Err(ChannelError::Wiring("ring memory"));
        }
        let words_per_slot = P::SLOT_SIZE / 8;
        let words_per_ring = words_per_slot * P::SLOTS;
        let slots = address + size_of::<ChannelHeader>();
        // SAFETY: init mapped `CHANNEL_SIZE` bytes at this page-aligned address and leaves them there until
        // this end is detached; header and words are atomics, which a peer may write at any time.
        let (header, requests, responses) = unsafe {
            let words = slots as *const AtomicU64;
            (
                &*(address as *const ChannelHeader),
                core::slice::from_raw_parts(words, words_per_ring),
                core::slice::from_raw_parts(words.add(words_per_ring), words_per_ring),
            )
        };
        let (tx, rx) = match side {
            Side::A => {
                header.greeting_a.write::<P>();
                let rx = Consumer::new(&header.responses, responses, words_per_slot);
                (Producer::new(&header.requests, requests, words_per_slot), rx)
            }
            Side::B => {
                header.greeting_b.write::<P>();
                let rx = Consumer::new(&header.requests, requests, words_per_slot);
                (Producer::new(&header.responses, responses, words_per_slot), rx)
            }
        };
        Ok(Self {
            info: info.clone(),
            header,
            tx,
            rx,
            side,
            has_greeting: false,
            slot: vec![[0; 8]; words_per_slot].into_boxed_slice(),
            protocol: core::marker::PhantomData,
        })
    }

    /// Whether the peer's greeting is there and fits.
    #[inline]
    fn check_greeting(&mut self) -> Result<bool, Mismatch> {
        if self.has_greeting { Ok(true) } else { self.look_for_greeting() }
    }

    #[cold]
    #[inline(never)]
    fn look_for_greeting(&mut self) -> Result<bool, Mismatch> {
        let greeting = match self.side {
            Side::A => &self.header.greeting_b,
            Side::B => &self.header.greeting_a,
        };
        self.has_greeting = greeting.check::<P>()?;
        Ok(self.has_greeting)
    }

    #[inline]
    fn send(&mut self, message: &impl Encode) -> Result<(), SendError> {
        self.check_greeting().map_err(SendError::Mismatch)?;
        // A message always fits its slot: the protocol's constants say so at compile time.
        let room = self.slot.as_flattened_mut().get_mut(LENGTH..).unwrap_or(&mut []);
        let Some(len) = message.encode(room) else {
            return Err(SendError::Ring(RingError::Message));
        };
        if self.tx.push(&mut self.slot, len).map_err(SendError::Ring)? == Err(Full) {
            self.wait_for_room(len)?;
        }
        counters::inc(MESSAGES_SENT);
        Ok(())
    }

    /// Announces the wait for room; where room appeared meanwhile, the message in the buffer goes there.
    #[cold]
    #[inline(never)]
    fn wait_for_room(&mut self, len: usize) -> Result<(), SendError> {
        if self.tx.prepare_sleep().map_err(SendError::Ring)? {
            return Err(SendError::Full);
        }
        self.tx.push(&mut self.slot, len).map_err(SendError::Ring)?.map_err(|Full| SendError::Full)
    }

    #[inline]
    fn receive<M: Decode>(&mut self) -> Result<Option<M>, ChannelError> {
        if !self.check_greeting().map_err(ChannelError::Mismatch)? {
            self.check_silence()?;
            return Ok(None);
        }
        let Some(len) = self.rx.pop(&mut self.slot)? else { return Ok(None) };
        counters::inc(MESSAGES_RECEIVED);
        let message = self.slot.as_flattened().get(LENGTH..LENGTH + len).unwrap_or(&[]);
        M::decode(message).map(Some).ok_or(ChannelError::Message)
    }

    /// Without a greeting there must be no message. The greeting is written before the first message is
    /// published, so whoever sees the message also sees the greeting.
    fn check_silence(&mut self) -> Result<(), ChannelError> {
        if self.rx.available()? > 0 && !self.check_greeting().map_err(ChannelError::Mismatch)? {
            return Err(ChannelError::NoGreeting);
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self) {
        let has_sent = self.tx.has_published();
        if ring::must_notify(&mut self.tx, &mut self.rx) {
            counters::inc(SIGNALS_SENT);
            // A peer that is gone needs no signal; init says so by Detach.
            let _gone = sys::event_signal(self.info.signal);
        } else if has_sent {
            counters::inc(SIGNALS_SUPPRESSED);
        }
    }

    #[inline]
    fn prepare_sleep(&mut self) -> Result<bool, ChannelError> {
        if self.rx.prepare_sleep()? {
            return Ok(true);
        }
        if !self.has_greeting {
            self.check_silence()?;
        }
        Ok(false)
    }
}

macro_rules! ends {
    ($($(#[$doc:meta])* $name:ident $side:ident $send:ident $receive:ident;)*) => {
        $(
            $(#[$doc])*
            pub struct $name<P: Protocol>(End<P>);

            impl<P: Protocol> $name<P> {
                /// Takes this end and writes its greeting.
                ///
                /// # Errors
                /// [`ChannelError::Wiring`] when the description does not fit the protocol.
                pub fn connect(info: &ChannelInfo) -> Result<Self, ChannelError> {
                    End::connect(info, Side::$side).map(Self)
                }

                /// Puts a message into the ring; [`Self::flush`] tells the peer.
                ///
                /// # Errors
                /// [`SendError::Full`] for now; after the others the channel is of no more use.
                #[inline]
                pub fn send(&mut self, message: &P::$send) -> Result<(), SendError> {
                    self.0.send(message)
                }

                /// Takes the next message, if there is one.
                ///
                /// # Errors
                /// The peer is broken: drop the channel.
                #[inline]
                pub fn receive(&mut self) -> Result<Option<P::$receive>, ChannelError> {
                    self.0.receive()
                }

                /// Free slots in the direction to the peer; 0 when the peer is broken.
                #[inline]
                pub fn room(&self) -> usize {
                    self.0.tx.free().map_or(0, |free| free as usize)
                }

                /// Whether a message waits; also when the peer is broken, which receiving it finds out.
                #[inline]
                pub fn has_messages(&self) -> bool {
                    self.0.rx.available() != Ok(0)
                }

                /// Signals the peer if it sleeps; after every batch of [`Self::send`] and [`Self::receive`].
                #[inline]
                pub fn flush(&mut self) {
                    self.0.flush();
                }

                /// Takes the announcement of [`Self::prepare_sleep`] back, because this end is awake and
                /// will look again: a peer that answers meanwhile saves its signal. [`Self::prepare_sleep`]
                /// has to follow before the domain waits.
                #[inline]
                pub fn stay_awake(&self) {
                    self.0.rx.stay_awake();
                }

                /// Announces that this end will wait; `true` when nothing is left to receive.
                ///
                /// # Errors
                /// The peer is broken: drop the channel.
                #[inline]
                pub fn prepare_sleep(&mut self) -> Result<bool, ChannelError> {
                    self.0.prepare_sleep()
                }

                /// Whether the peer's greeting arrived and fits; `false`: not yet.
                ///
                /// # Errors
                /// [`ChannelError::Mismatch`].
                pub fn is_connected(&mut self) -> Result<bool, ChannelError> {
                    self.0.check_greeting().map_err(ChannelError::Mismatch)
                }

                /// The description that this end was made from.
                #[inline]
                pub fn info(&self) -> &ChannelInfo {
                    &self.0.info
                }
            }

            impl<P: Protocol> fmt::Debug for $name<P> {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.debug_struct(stringify!($name)).field("info", &self.0.info).finish_non_exhaustive()
                }
            }
        )*
    };
}

ends! {
    /// Side A of a channel: sends requests, receives responses.
    Client A Request Response;
    /// Side B of a channel: receives requests, sends responses.
    Server B Response Request;
}

#[cfg(test)]
mod tests;
