//! The block backend's domain: virtio-blk functions, supervise channel, one blk channel per virtual disk.
#![no_std]
#![no_main]

extern crate alloc;

mod device;

use blkback::{Attachment, Backend, Client, Disk, Gone};
use proto::blk::{Blk, Direction, Request, Response};
use proto::channel::{ChannelInfo, ChannelKind, Region};
use proto::{counters, supervise};
use rt::channel::Server;
use rt::supervise::Supervisor;
use rt::time::Clock;
use virtio_domain::hal;

use device::VirtioDisk;

rt::entry!(main);

/// A VMM's ring.
struct Ring(Server<Blk>);

impl Client for Ring {
    fn receive(&mut self) -> Result<Option<Request>, Gone> {
        let received = self.0.receive().map_err(|error| {
            log::warn!("blk channel of {}: {error}", self.0.info().peer_name);
            Gone
        })?;
        if let Some(request) = &received {
            count(request);
        }
        Ok(received)
    }

    fn answer(&mut self, response: &Response) -> Result<(), Gone> {
        self.0.send(response).map_err(|error| {
            log::warn!("blk channel of {}: {error}", self.0.info().peer_name);
            Gone
        })
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn prepare_sleep(&mut self) -> Result<bool, Gone> {
        self.0.prepare_sleep().map_err(|error| {
            log::warn!("blk channel of {}: {error}", self.0.info().peer_name);
            Gone
        })
    }
}

/// Counts what clients ask for.
fn count(request: &Request) {
    match *request {
        Request::Open => {}
        Request::Flush { .. } => rt::counters::inc(counters::BLK_FLUSHES),
        Request::Transfer { direction: Direction::Read, len, .. } => {
            rt::counters::inc(counters::BLK_READS);
            rt::counters::add(counters::BLK_BYTES_READ, u64::from(len));
        }
        Request::Transfer { direction: Direction::Write, len, .. } => {
            rt::counters::inc(counters::BLK_WRITES);
            rt::counters::add(counters::BLK_BYTES_WRITTEN, u64::from(len));
        }
    }
}

type Disks = Backend<Ring, VirtioDisk>;

fn main(env: rt::Env) -> ! {
    let event = env.info.event;
    let mut supervisor = Supervisor::new(&env);
    let mut backend = Disks::default();
    let clock = Clock::new(env.info.tsc_khz);
    for device in env.info.devices.iter() {
        match VirtioDisk::new(device, &clock) {
            Ok(disk) => add(&mut backend, disk),
            Err(reason) => log::error!("device {:#06x} is not used: {reason}", device.address),
        }
    }
    for channel in env.channels(ChannelKind::Blk) {
        if let Err(reason) = attach(&mut backend, channel) {
            supervisor.refused(channel.id, reason);
        }
    }
    supervisor.ready();
    let supervise = env.channel(ChannelKind::Supervise).map_or(u64::MAX, |channel| channel.signals);
    // At first everything may have something to say.
    let mut signals = u64::MAX;
    loop {
        let is_supervised = signals & supervise != 0;
        if is_supervised {
            serve_supervisor(&mut backend, &mut supervisor);
        }
        let has_more = backend.poll(signals);
        let has_detached = let_go(&mut backend, &mut supervisor);
        let mut may_sleep = !has_more;
        signals = 0;
        if is_supervised || has_detached {
            supervisor.flush();
            if !supervisor.prepare_sleep() {
                (may_sleep, signals) = (false, supervise);
            }
        }
        let came = if may_sleep { rt::sys::event_wait(event) } else { rt::sys::event_poll(event) };
        match came {
            Ok(came) => signals |= came,
            Err(_) => rt::exit_failed("waiting for an event is not possible"),
        }
    }
}

/// Gives channels back that no device uses any more; whether there were any.
fn let_go(backend: &mut Disks, supervisor: &mut Supervisor) -> bool {
    let mut has_detached = false;
    while let Some((id, pool, ring)) = backend.take_detached() {
        drop(ring);
        // A volume in a client's memory has no pool.
        if pool.len > 0
            && let Err(error) = hal::remove_pool(pool)
        {
            log::error!("channel {id}: {error}");
        }
        supervisor.detached(id);
        has_detached = true;
    }
    has_detached
}

fn add(backend: &mut Disks, disk: VirtioDisk) {
    let geometry = disk.geometry();
    let access = if geometry.is_read_only { ", read-only" } else { "" };
    log::info!("volume {}: {} MiB{access}", disk.name(), geometry.sectors / 2048);
    if let Some(flaw) = geometry.flaw() {
        log::warn!("volume {}: {flaw}", disk.name());
    }
    if let Err(disk) = backend.add_volume(disk) {
        log::error!("volume {}: there is one of this name already, this one is not used", disk.name());
    }
}

fn serve_supervisor(backend: &mut Disks, supervisor: &mut Supervisor) {
    while let Some(request) = supervisor.next() {
        match request {
            supervise::Request::Attach(channel) => match attach(backend, &channel) {
                Ok(()) => supervisor.attached(channel.id),
                Err(reason) => supervisor.refused(channel.id, reason),
            },
            // A channel that is still busy answers when its last operation has ended.
            supervise::Request::Detach { id } if backend.detach(id) => {}
            supervise::Request::Detach { id } => supervisor.detached(id),
            supervise::Request::Ping { .. } => {}
        }
    }
}

fn attach(backend: &mut Disks, channel: &ChannelInfo) -> Result<(), &'static str> {
    if channel.kind != ChannelKind::Blk {
        return Err("The block backend serves blk channels only.");
    }
    let has_pool = channel.memory == 0;
    if has_pool && channel.pool_phys == 0 {
        return Err("The channel's pool has no physical address.");
    }
    let ring = Server::connect(channel).map_err(|_| "The channel's rings do not fit the protocol.")?;
    if has_pool {
        hal::add_pool(channel.pool, channel.pool_phys)
            .map_err(|_| "The channel's pool cannot be used for DMA.")?;
    }
    let attachment = Attachment {
        id: channel.id,
        signals: channel.signals,
        volume: channel.target.as_str(),
        is_read_only: channel.is_read_only,
        pool: if has_pool { channel.pool } else { Region::default() },
        memory: channel.memory,
    };
    backend.attach(&attachment, Ring(ring)).inspect_err(|_| {
        if has_pool {
            let _forgotten = hal::remove_pool(channel.pool);
        }
    })
}
