//! The network backend's domain: one virtio-net function at most, supervise channel, one net channel
//! per vif. Without a NIC the bridge connects the guests among themselves.
#![no_std]
#![no_main]

extern crate alloc;

mod nic;

use alloc::vec::Vec;

use netback::bridge::{Attachment, Bridge, Gone, Link};
use proto::channel::{ChannelInfo, ChannelKind};
use proto::net::{Net, POOL_SIZE, Request, Response};
use proto::supervise;
use rt::channel::Server;
use rt::pool::Pool;
use rt::supervise::Supervisor;
use rt::time::Clock;

use nic::Nic;

/// Name of the one bridge, as guests' configurations give it.
const BRIDGE: &str = "xenbr0";

rt::entry!(main);

/// A VMM's ring and pool.
struct Ring {
    server: Server<Net>,
    pool: Pool,
}

impl Link for Ring {
    fn receive(&mut self) -> Result<Option<Request>, Gone> {
        self.server.receive().map_err(|error| {
            log::warn!("net channel of {}: {error}", self.server.info().peer_name);
            Gone
        })
    }

    fn send(&mut self, response: &Response) -> Result<(), Gone> {
        self.server.send(response).map_err(|error| {
            log::warn!("net channel of {}: {error}", self.server.info().peer_name);
            Gone
        })
    }

    fn read(&self, offset: u32, out: &mut [u8]) -> bool {
        self.pool.read(offset as usize, out).is_ok()
    }

    fn write(&self, offset: u32, frame: &[u8]) -> bool {
        self.pool.write(offset as usize, frame).is_ok()
    }
}

type Switch = Bridge<Ring, Nic>;

fn main(env: rt::Env) -> ! {
    let mut supervisor = Supervisor::new(&env);
    let clock = Clock::new(env.info.tsc_khz);
    let mut bridge = Switch::new(BRIDGE, uplink(&env));
    for channel in env.channels(ChannelKind::Net) {
        if let Err(reason) = attach(&mut bridge, channel) {
            supervisor.refused(channel.id, reason);
        }
    }
    supervisor.ready();
    loop {
        serve_supervisor(&mut bridge, &mut supervisor);
        let has_more = bridge.poll(clock.now_ns());
        for ring in bridge.links() {
            ring.server.flush();
        }
        supervisor.flush();
        if has_more || !prepare_sleep(&mut bridge, &mut supervisor) {
            continue;
        }
        if rt::sys::event_wait(env.info.event).is_err() {
            rt::exit_failed("waiting for an event is not possible");
        }
    }
}

/// The first device that works.
fn uplink(env: &rt::Env) -> Option<Nic> {
    for device in env.info.devices.iter() {
        match Nic::new(device) {
            Ok(nic) => {
                log::info!("bridge {BRIDGE}: uplink is device {:#06x}", device.address);
                return Some(nic);
            }
            Err(reason) => log::error!("device {:#06x} is not used: {reason}", device.address),
        }
    }
    log::info!("bridge {BRIDGE}: no uplink");
    None
}

fn serve_supervisor(bridge: &mut Switch, supervisor: &mut Supervisor) {
    while let Some(request) = supervisor.next() {
        match request {
            supervise::Request::Attach(channel) => match attach(bridge, &channel) {
                Ok(()) => supervisor.attached(channel.id),
                Err(reason) => supervisor.refused(channel.id, reason),
            },
            supervise::Request::Detach { id } => {
                if let Some((ring, counters)) = bridge.detach(id) {
                    log::debug!("vif of {}: {counters:?}", ring.server.info().peer_name);
                }
                supervisor.detached(id);
            }
            supervise::Request::Ping { .. } => {}
        }
    }
}

fn attach(bridge: &mut Switch, channel: &ChannelInfo) -> Result<(), &'static str> {
    if channel.kind != ChannelKind::Net {
        return Err("The network backend serves net channels only.");
    }
    if channel.pool.len < POOL_SIZE {
        return Err("The channel's pool is too small.");
    }
    let server = Server::connect(channel).map_err(|_| "The channel's rings do not fit the protocol.")?;
    let attachment = Attachment { id: channel.id, bridge: channel.target.as_str(), mac: channel.mac };
    bridge.attach(&attachment, Ring { server, pool: Pool::from_region(channel.pool) })
}

/// Whether nothing is left to be received anywhere.
fn prepare_sleep(bridge: &mut Switch, supervisor: &mut Supervisor) -> bool {
    let mut may_sleep = supervisor.prepare_sleep();
    let mut broken = Vec::new();
    for ring in bridge.links() {
        match ring.server.prepare_sleep() {
            Ok(is_empty) => may_sleep &= is_empty,
            Err(_) => broken.push(ring.server.info().id),
        }
    }
    for id in broken {
        bridge.drop_channel(id);
    }
    may_sleep
}
