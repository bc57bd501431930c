//! The network backend's domain: one virtio-net function at most, supervise channel, one net channel
//! per vif. Without a NIC the bridge connects the guests among themselves.
#![no_std]
#![no_main]

extern crate alloc;

mod nic;

use netback::bridge::{Attachment, Bridge, RETRY_NS};
use netback::link::{Gone, Link};
use proto::channel::{ChannelInfo, ChannelKind};
use proto::counters::{
    BYTES_COPIED, NET_BYTES_IN, NET_BYTES_OUT, NET_DROPPED, NET_FORWARDED, NET_FRAMES_IN, NET_FRAMES_OUT,
};
use proto::net::{Net, POOL_SIZE, Request, Response};
use proto::supervise;
use rt::channel::Server;
use rt::counters;
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
        let request = self.server.receive().map_err(|error| {
            log::warn!("net channel of {}: {error}", self.server.info().peer_name);
            Gone
        })?;
        if let Some(Request::Send(frame)) = &request {
            counters::inc(NET_FRAMES_OUT);
            counters::add(NET_BYTES_OUT, u64::from(frame.len));
        }
        Ok(request)
    }

    fn send(&mut self, response: &Response) -> Result<(), Gone> {
        if let Response::Receive(frame) = response {
            counters::inc(NET_FRAMES_IN);
            counters::add(NET_BYTES_IN, u64::from(frame.len));
        }
        self.server.send(response).map_err(|error| {
            log::warn!("net channel of {}: {error}", self.server.info().peer_name);
            Gone
        })
    }

    fn flush(&mut self) {
        self.server.flush();
    }

    fn prepare_sleep(&mut self) -> Result<bool, Gone> {
        self.server.prepare_sleep().map_err(|_| Gone)
    }

    fn signals(&self) -> u64 {
        self.server.info().signals
    }

    fn read(&self, offset: u32, out: &mut [u8]) -> bool {
        counters::add(BYTES_COPIED, out.len() as u64);
        self.pool.read(offset as usize, out).is_ok()
    }

    fn write(&self, offset: u32, bytes: &[u8]) -> bool {
        counters::add(BYTES_COPIED, bytes.len() as u64);
        self.pool.write(offset as usize, bytes).is_ok()
    }

    fn copy(&self, offset: u32, to: &Self, to_offset: u32, len: u32) -> bool {
        counters::inc(NET_FORWARDED);
        counters::add(BYTES_COPIED, u64::from(len));
        self.pool.copy_to(offset as usize, &to.pool, to_offset as usize, len as usize).is_ok()
    }

    fn note_dropped(&self) {
        counters::inc(NET_DROPPED);
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
    let init = env.channels(ChannelKind::Supervise).fold(0, |signals, channel| signals | channel.signals);
    // At first everything may have something to say.
    let mut signals = u64::MAX;
    loop {
        bridge.signalled(signals);
        if signals & init != 0 {
            serve_supervisor(&mut bridge, &mut supervisor);
        }
        while bridge.poll(clock.now_ns()) {
            // A flood of frames does not keep init from being heard.
            let news = rt::sys::event_poll(env.info.event).unwrap_or(0);
            bridge.signalled(news);
            if news & init != 0 {
                serve_supervisor(&mut bridge, &mut supervisor);
            }
        }
        if bridge.is_waiting() {
            let due = rt::time::tsc() + clock.ns_to_tsc(RETRY_NS);
            if rt::sys::event_timer(env.info.event, due, env.info.timer_signals).is_err() {
                rt::exit_failed("setting a timer is not possible");
            }
        }
        match rt::sys::event_wait(env.info.event) {
            Ok(news) => signals = news,
            Err(_) => rt::exit_failed("waiting for an event is not possible"),
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

/// Does what init asks, until it asks for nothing more and will signal the next request.
fn serve_supervisor(bridge: &mut Switch, supervisor: &mut Supervisor) {
    loop {
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
        supervisor.flush();
        if supervisor.prepare_sleep() {
            return;
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
