//! Channels: memory that exactly two domains share, and for each the right to signal the other.
//!
//! Every channel is here, so the whole communication graph can be listed. Side A maps the owned run, side
//! B a derived one; both signal capabilities carry only the signals of this channel. A disk's volume in
//! memory belongs to its channel in place of a pool, and only side A can reach it.

use alloc::collections::BTreeMap;

use proto::abi::{PAGE_SIZE, Slot, map, rights};
use proto::channel::{ChannelInfo, ChannelKind, Protocol, Region, Side};
use proto::text::Text;
use proto::{blk, builder, console, net, supervise, toolstack, xenstore};

use crate::domain::{Domain, Kind};
use crate::error::{BuildError, Step};
use crate::frames::Run;
use crate::kernel::Kernel;
use crate::resources::Resources;

/// Bytes of a channel's rings.
pub fn ring_size(kind: ChannelKind) -> u64 {
    let size = match kind {
        ChannelKind::Supervise => supervise::Supervise::CHANNEL_SIZE,
        ChannelKind::Log => console::Log::CHANNEL_SIZE,
        ChannelKind::GuestConsole => console::GuestConsole::CHANNEL_SIZE,
        ChannelKind::Operator => console::Operator::CHANNEL_SIZE,
        ChannelKind::Xenstore => xenstore::Xenstore::CHANNEL_SIZE,
        ChannelKind::Blk => blk::Blk::CHANNEL_SIZE,
        ChannelKind::Net => net::Net::CHANNEL_SIZE,
        ChannelKind::Builder => builder::Builder::CHANNEL_SIZE,
        ChannelKind::Guest => toolstack::Guest::CHANNEL_SIZE,
    };
    size as u64
}

/// Frames from which on a volume in memory is aligned so that large pages map it.
const LARGE: u64 = 512;

/// Bytes of a channel's pool; a volume in memory is moved to and from in place.
pub fn pool_size(kind: ChannelKind, memory: u64) -> u64 {
    match kind {
        ChannelKind::Blk if memory == 0 => blk::POOL_SIZE,
        ChannelKind::Net => net::POOL_SIZE,
        _ => 0,
    }
}

/// What is to be wired.
#[derive(Debug, Clone)]
pub struct Wire {
    /// What for.
    pub kind: ChannelKind,
    /// Domain at side A, and the signals that its peer sets (0: a free one).
    pub a: (u32, u64),
    /// Domain at side B likewise.
    pub b: (u32, u64),
    /// As in [`ChannelInfo`].
    pub target: Text<64>,
    /// As in [`ChannelInfo`].
    pub is_read_only: bool,
    /// As in [`ChannelInfo`].
    pub memory: u64,
    /// As in [`ChannelInfo`].
    pub mac: [u8; 6],
}

impl Wire {
    /// A channel without further properties.
    pub fn new(kind: ChannelKind, a: u32, b: u32) -> Self {
        let (a, b) = ((a, 0), (b, 0));
        Self { kind, a, b, target: Text::new(), is_read_only: false, memory: 0, mac: [0; 6] }
    }
}

/// A channel that exists.
#[derive(Debug)]
pub struct Channel {
    run: Run,
    /// A volume in memory.
    volume: Option<Run>,
    map_b: Option<Slot>,
    /// What side A is told; its `peer` is the domain at side B.
    pub a: ChannelInfo,
    /// What side B is told.
    pub b: ChannelInfo,
    /// One end is gone and the other was asked to let go.
    pub is_closing: bool,
}

impl Channel {
    /// The other end's domain, as `domid` sees it.
    pub fn peer_of(&self, domid: u32) -> u32 {
        if self.b.peer == domid { self.a.peer } else { self.b.peer }
    }

    /// What a domain is told about its end.
    pub fn info_for(&self, domid: u32) -> &ChannelInfo {
        if self.b.peer == domid { &self.a } else { &self.b }
    }

    /// Whether the domain holds one of the ends.
    pub fn is_end(&self, domid: u32) -> bool {
        self.a.peer == domid || self.b.peer == domid
    }

    /// Frames, without those of a volume in memory.
    pub fn frames(&self) -> u64 {
        self.run.count
    }

    /// Frames of a volume in memory.
    pub fn volume_frames(&self) -> u64 {
        self.volume.as_ref().map_or(0, |run| run.count)
    }
}

/// All domains.
pub type Domains = BTreeMap<u32, Domain>;

fn missing() -> BuildError {
    BuildError::Request("one end of the channel is gone".into())
}

/// Makes a channel and records it with both domains.
///
/// # Errors
/// No memory, a full table, or the kernel's; nothing is changed then.
pub fn connect<K: Kernel>(
    resources: &mut Resources<K>,
    domains: &mut Domains,
    id: u32,
    wire: &Wire,
) -> Result<Channel, BuildError> {
    let (rings, pool) = (ring_size(wire.kind), pool_size(wire.kind, wire.memory));
    let volume = match wire.memory / PAGE_SIZE {
        0 => None,
        count => Some(resources.take_filled(count, if count < LARGE { 1 } else { LARGE }, &[])?),
    };
    let run = match resources.take_filled((rings + pool) / PAGE_SIZE, 1, &[]) {
        Ok(run) => run,
        Err(error) => {
            volume.into_iter().for_each(|volume| resources.give(volume));
            return Err(error);
        }
    };
    let pool_phys = if pool > 0 { run.first * PAGE_SIZE + rings } else { 0 };
    let mut info = |(own, signals): (u32, u64), peer: u32, side| -> Result<ChannelInfo, BuildError> {
        let peer_name = domains.get(&peer).ok_or_else(missing)?.name.clone();
        let domain = domains.get_mut(&own).ok_or_else(missing)?;
        let signals = if signals == 0 { domain.take_signal() } else { signals };
        let address = match domain.kind {
            Kind::Root => resources.arena.take(rings + pool),
            _ => domain.arena.take(rings + pool),
        };
        let pool = match (side, wire.memory) {
            (_, 0) if pool == 0 => Region::default(),
            (_, 0) => Region { addr: address + rings, len: pool },
            (Side::A, len) => Region { addr: domain.arena.take(len), len },
            (Side::B, _) => Region::default(),
        };
        Ok(ChannelInfo {
            id,
            kind: wire.kind,
            side,
            peer,
            peer_name,
            rings: Region { addr: address, len: rings },
            pool,
            pool_phys: if side == Side::B { pool_phys } else { 0 },
            signal: 0,
            signals,
            target: wire.target.clone(),
            is_read_only: wire.is_read_only,
            memory: wire.memory,
            mac: wire.mac,
        })
    };
    let infos = info(wire.a, wire.b.0, Side::A).and_then(|a| Ok((a, info(wire.b, wire.a.0, Side::B)?)));
    let (a, b) = match infos {
        Ok(infos) => infos,
        Err(error) => {
            volume.into_iter().for_each(|volume| resources.give(volume));
            resources.give(run);
            return Err(error);
        }
    };
    let mut channel = Channel { run, volume, map_b: None, a, b, is_closing: false };
    match attach(resources, domains, &mut channel, wire) {
        Ok(()) => Ok(channel),
        Err(error) => {
            disconnect(resources, domains, channel);
            Err(error)
        }
    }
}

/// Maps both ends and installs both signal capabilities.
fn attach<K: Kernel>(
    resources: &mut Resources<K>,
    domains: &mut Domains,
    channel: &mut Channel,
    wire: &Wire,
) -> Result<(), BuildError> {
    let flags = map::READ | map::WRITE;
    let range = (channel.run.first, channel.run.count);
    let map_b = resources.derive(channel.run.slot, 0, range.1, flags)?;
    channel.map_b = Some(map_b);
    let sides = [(wire.a.0, channel.run.slot, channel.a.rings.addr), (wire.b.0, map_b, channel.b.rings.addr)];
    for (domid, cap, address) in sides {
        let domain = domains.get_mut(&domid).ok_or_else(missing)?;
        match domain.kind {
            Kind::Root => resources.map_own(cap, range, address, flags)?,
            _ => resources.map(&mut domain.space, cap, range, address, flags)?,
        }
        domain.channels.push(channel.a.id);
    }
    if let Some(volume) = &channel.volume {
        let domain = domains.get_mut(&wire.a.0).ok_or_else(missing)?;
        let range = (volume.first, volume.count);
        resources.map(&mut domain.space, volume.slot, range, channel.a.pool.addr, flags)?;
    }
    channel.a.signal = install_signal(resources, domains, wire.a.0, wire.b.0, channel.b.signals)?;
    channel.b.signal = install_signal(resources, domains, wire.b.0, wire.a.0, channel.a.signals)?;
    Ok(())
}

/// Gives `holder` the right to set `signals` of the event of `target`; the slot in the holder's table.
fn install_signal<K: Kernel>(
    resources: &mut Resources<K>,
    domains: &mut Domains,
    holder: u32,
    target: u32,
    signals: u64,
) -> Result<Slot, BuildError> {
    let event = domains.get(&target).ok_or_else(missing)?.event;
    let domain = domains.get_mut(&holder).ok_or_else(missing)?;
    if domain.kind == Kind::Root {
        return resources.derive(event, signals, 0, rights::SIGNAL);
    }
    let dst = domain.slot()?;
    let result = resources.kernel.cap_derive(event, domain.space.slot, dst, signals, 0, rights::SIGNAL);
    if result.is_err() {
        domain.table.give(dst);
    }
    result.step("install a signal capability")?;
    Ok(dst)
}

/// Takes a channel away from both ends and gives its memory back.
pub fn disconnect<K: Kernel>(resources: &mut Resources<K>, domains: &mut Domains, channel: Channel) {
    for (domid, info) in [(channel.b.peer, &channel.a), (channel.a.peer, &channel.b)] {
        let Some(domain) = domains.get_mut(&domid) else { continue };
        domain.channels.retain(|id| *id != info.id);
        let len = info.rings.len + pool_size(info.kind, info.memory);
        if domain.kind == Kind::Root {
            resources.arena.give(info.rings.addr, len);
            if info.signal != 0 {
                resources.delete(info.signal);
            }
            continue;
        }
        domain.arena.give(info.rings.addr, len);
        if info.memory > 0 && info.pool.len > 0 {
            domain.arena.give(info.pool.addr, info.pool.len);
        }
        if info.signal != 0 {
            // Gone already when the event was destroyed.
            let _gone = resources.kernel.cap_delete(domain.space.slot, info.signal);
            domain.table.give(info.signal);
        }
    }
    if let Some(map_b) = channel.map_b {
        resources.delete(map_b);
    }
    resources.release(channel.run);
    if let Some(volume) = channel.volume {
        resources.release(volume);
    }
}
