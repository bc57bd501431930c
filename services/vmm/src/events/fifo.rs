//! FIFO event channels: a word per port in the guest's event array, and queues of pending ports that are
//! linked through these words, one per vCPU and priority.
//!
//! The guest consumes from a queue's head, which is in its control block; this adds behind the tail, which
//! only this knows. A word is changed by both sides, so it is changed atomically here; where the guest
//! changes a word that is being linked again and again, linking it is given up after a few tries: a guest
//! that breaks the rules loses its own events, and nothing here ever loops on what it writes or follows a
//! link. Invariant: a word that is LINKED is on the queue that [`Place`] names.
//! Sources: Xen public/event_channel.h; common/event_fifo.c for the protocol.

use alloc::vec::Vec;

use crate::errno::Errno;
use crate::memory::{PAGE, Page};

/// Bits of a port's word; the link, the next port of the queue, is below them.
const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
const BUSY: u32 = 1 << 28;
/// Bits of a link.
pub const LINK_BITS: u8 = 17;
const LINK: u32 = (1 << LINK_BITS) - 1;

const PRIORITIES: usize = 16;
const PRIORITY_DEFAULT: u8 = 7;
const WORDS_PER_PAGE: u32 = (PAGE / 4) as u32;
const PAGES_MAX: usize = 1 << LINK_BITS >> 10;

/// Control block: a bit per priority whose queue is not empty, and each queue's head.
const READY: usize = 0;
const HEADS: usize = 8;
const CONTROL_LEN: usize = HEADS + 4 * PRIORITIES;

/// A guest that keeps the rules changes a BUSY word so many times at most: it may set or clear MASKED once,
/// and clear PENDING and LINKED.
const LINK_TRIES: u32 = 4;

/// What a port has of its own here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    priority: u8,
    /// The queue on which it was put last.
    last: Queue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queue {
    vcpu: u8,
    priority: u8,
}

impl Place {
    pub const NEW: Self = Self { priority: PRIORITY_DEFAULT, last: Queue { vcpu: 0, priority: 0 } };

    pub fn with_default_priority(self) -> Self {
        Self { priority: PRIORITY_DEFAULT, ..self }
    }

    /// # Errors
    /// [`Errno::Invalid`]: there is no such priority.
    pub fn set_priority(&mut self, priority: u32) -> Result<(), Errno> {
        match u8::try_from(priority) {
            Ok(priority) if usize::from(priority) < PRIORITIES => self.priority = priority,
            _ => return Err(Errno::Invalid),
        }
        Ok(())
    }
}

/// What came of raising a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It was pending already, and is where the guest will find it.
    None,
    /// It is pending now; its vCPU needs no upcall.
    Pending,
    /// Its vCPU is to take the upcall.
    Upcall,
    /// The event array does not reach to it yet.
    NoPlace,
}

impl News {
    /// Whether the port may not have been pending before.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Pending | Self::Upcall)
    }
}

/// Queues of one vCPU.
#[derive(Debug, Clone, Copy)]
struct Queues {
    control: Option<(Page, usize)>,
    /// The last port of each queue; 0: it is empty. The guest may have consumed it meanwhile.
    tails: [u32; PRIORITIES],
}

/// The FIFO ABI of a guest that asked for it.
#[derive(Debug)]
pub(super) struct Fifo {
    vcpus: Vec<Queues>,
    array: Vec<Page>,
}

/// Where in its page a control block is, or [`Errno::Invalid`].
pub(super) fn control_offset(offset: u32) -> Result<usize, Errno> {
    let offset = offset as usize;
    if offset > PAGE - CONTROL_LEN || !offset.is_multiple_of(8) { Err(Errno::Invalid) } else { Ok(offset) }
}

/// A port's word.
#[derive(Debug, Clone, Copy)]
struct Word {
    page: Page,
    offset: usize,
}

impl Word {
    #[inline]
    fn get(&self) -> u32 {
        self.page.u32(self.offset)
    }

    /// Sets bits; whether one of them was set.
    #[inline]
    fn set(&self, bits: u32) -> bool {
        self.page.or_u32(self.offset, bits) & bits != 0
    }

    #[inline]
    fn clear(&self, bits: u32) {
        self.page.and_u32(self.offset, !bits);
    }

    /// One try to link `port` behind this, if this is still in the queue. `None`: the guest was faster.
    fn try_link(&self, port: u32) -> Option<bool> {
        let old = self.get();
        if old & LINKED == 0 {
            return Some(false);
        }
        self.page.replace_u32(self.offset, old, old & !(BUSY | LINK) | port).then_some(true)
    }

    /// Links `port` behind this, if this is still in the queue; whether it is.
    fn link(&self, port: u32) -> bool {
        if let Some(is_linked) = self.try_link(port) {
            return is_linked;
        }
        // The guest does not unmask a word that is busy.
        self.set(BUSY);
        for _ in 0..LINK_TRIES {
            match self.try_link(port) {
                Some(true) => return true,
                Some(false) => {
                    self.clear(BUSY);
                    return false;
                }
                None => {}
            }
        }
        // It breaks the rules, and may lose the rest of its queue.
        self.clear(BUSY);
        true
    }
}

impl Fifo {
    /// No control blocks, no array.
    ///
    /// # Errors
    /// [`Errno::NoMemory`].
    pub fn new(vcpus: usize) -> Result<Self, Errno> {
        let mut queues = Vec::new();
        queues.try_reserve_exact(vcpus).map_err(|_| Errno::NoMemory)?;
        queues.resize(vcpus, Queues { control: None, tails: [0; PRIORITIES] });
        Ok(Self { vcpus: queues, array: Vec::new() })
    }

    /// A vCPU's control block.
    ///
    /// # Errors
    /// [`Errno::NoEntry`], [`Errno::Invalid`]: it has one.
    pub fn set_control(&mut self, vcpu: u8, page: Page, offset: usize) -> Result<(), Errno> {
        let queues = self.vcpus.get_mut(usize::from(vcpu)).ok_or(Errno::NoEntry)?;
        if queues.control.is_some() {
            return Err(Errno::Invalid);
        }
        queues.control = Some((page, offset));
        Ok(())
    }

    /// One more page of words.
    ///
    /// # Errors
    /// [`Errno::NoSpace`], [`Errno::Invalid`], [`Errno::NoMemory`].
    pub fn expand(&mut self, page: Option<Page>) -> Result<(), Errno> {
        if self.array.len() >= PAGES_MAX {
            return Err(Errno::NoSpace);
        }
        let page = page.ok_or(Errno::Invalid)?;
        self.array.try_reserve(1).map_err(|_| Errno::NoMemory)?;
        self.array.push(page);
        Ok(())
    }

    #[inline]
    fn word(&self, port: u32) -> Option<Word> {
        let page = *self.array.get((port / WORDS_PER_PAGE) as usize)?;
        Some(Word { page, offset: (port % WORDS_PER_PAGE) as usize * 4 })
    }

    /// Makes a port pending, and puts it into the queue of `vcpu` and its priority unless it is masked or in
    /// a queue.
    pub fn raise(&mut self, port: u32, vcpu: u8, place: &mut Place) -> News {
        let Some(word) = self.word(port) else { return News::NoPlace };
        let was_pending = word.set(PENDING);
        let news = if was_pending { News::None } else { News::Pending };
        let queue = Queue { vcpu, priority: place.priority };
        let Some((page, control)) = self.vcpus.get(usize::from(vcpu)).and_then(|queues| queues.control)
        else {
            // The guest must not unmask it before the vCPU has its control block.
            return news;
        };
        if word.get() & MASKED != 0 || word.set(LINKED) {
            return news;
        }
        // It was the last of its old queue, which is empty then: not to be linked behind any more.
        let old = core::mem::replace(&mut place.last, queue);
        if let Some(tail) = self.tail(old)
            && *tail == port
        {
            *tail = 0;
        }
        let Some(tail) = self.tail(queue) else { return news };
        let last = core::mem::replace(tail, port);
        let is_linked = last != 0 && self.word(last).is_some_and(|word| word.link(port));
        if is_linked {
            return news;
        }
        let priority = usize::from(queue.priority);
        page.set_u32(control + HEADS + 4 * priority, port);
        let ready = 1 << priority;
        if page.or_u32(control + READY, ready) & ready != 0 { news } else { News::Upcall }
    }

    #[inline]
    fn tail(&mut self, queue: Queue) -> Option<&mut u32> {
        self.vcpus.get_mut(usize::from(queue.vcpu))?.tails.get_mut(usize::from(queue.priority))
    }

    /// Unmasks a port, and puts it into its queue if it is pending.
    pub fn unmask(&mut self, port: u32, vcpu: u8, place: &mut Place) -> News {
        let Some(word) = self.word(port) else { return News::None };
        word.clear(MASKED);
        if word.get() & PENDING != 0 { self.raise(port, vcpu, place) } else { News::None }
    }

    /// The guest ignores a port in a queue that is not pending.
    pub fn clear_pending(&self, port: u32) {
        if let Some(word) = self.word(port) {
            word.clear(PENDING);
        }
    }

    pub fn is_pending(&self, port: u32) -> bool {
        self.word(port).is_some_and(|word| word.get() & PENDING != 0)
    }

    /// Whether the guest still has the port in a queue.
    pub fn is_linked(&self, port: u32) -> bool {
        self.word(port).is_some_and(|word| word.get() & LINKED != 0)
    }
}

#[cfg(test)]
mod tests;
