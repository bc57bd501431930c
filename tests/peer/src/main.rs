//! The station's domain: supervise channel, and one net channel to netback.
#![no_std]
#![no_main]

extern crate alloc;

use peer::port::{Gone, Link, Port, State};
use peer::station::{Address, Station};
use proto::channel::ChannelKind;
use proto::net::{Net, POOL_SIZE, Request, Response};
use rt::channel::Client;
use rt::pool::Pool;
use rt::supervise::Supervisor;
use rt::time::{Clock, tsc};

rt::entry!(main);

/// The ring and the pool.
struct Ring {
    client: Client<Net>,
    pool: Pool,
}

impl Link for Ring {
    fn receive(&mut self) -> Result<Option<Response>, Gone> {
        self.client.receive().map_err(|error| {
            log::error!("net channel: {error}");
            Gone
        })
    }

    fn send(&mut self, request: &Request) -> Result<(), Gone> {
        self.client.send(request).map_err(|error| {
            log::error!("net channel: {error}");
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

fn main(env: rt::Env) -> ! {
    let mut supervisor = Supervisor::new(&env);
    let clock = Clock::new(env.info.tsc_khz);
    let mut station = station(&env, clock.now_ns());
    let rest_ticks = clock.ns_to_tsc(1000 * number(&env, "rest-us", 0));
    supervisor.ready();
    let mut was_opening = true;
    // The deadline that the timer is set to, 0 for none.
    let mut timer_ns = 0;
    loop {
        while supervisor.next().is_some() {}
        let now_ns = clock.now_ns();
        station.poll(now_ns);
        let port = station.port();
        if was_opening {
            was_opening = port.state() == State::Opening;
            if let State::Closed(reason) = port.state() {
                log::error!("netback refuses the interface: {reason}");
            }
        }
        let is_gone = port.is_gone();
        port.link().client.flush();
        supervisor.flush();
        if rest_ticks > 0 && station.can_rest() {
            // Netback is not asked for a signal.
            timer_ns = 0;
            let rest = rt::sys::event_timer(env.info.event, tsc() + rest_ticks, env.info.timer_signals);
            if rest.and_then(|()| rt::sys::event_wait(env.info.event)).is_ok() {
                continue;
            }
        }
        let port = station.port();
        // A broken channel is never empty: only supervision goes on then.
        let is_quiet = is_gone || port.link().client.prepare_sleep().unwrap_or(true);
        if !(supervisor.prepare_sleep() & is_quiet) {
            continue;
        }
        // A timer that goes off too early costs less than setting it anew for every segment.
        if let Some(deadline_ns) = station.deadline_ns(now_ns).filter(|_| !is_gone) {
            let is_set = timer_ns > now_ns && timer_ns <= deadline_ns;
            if !is_set {
                timer_ns = deadline_ns.max(now_ns + 1);
                let deadline = clock.ns_to_tsc(timer_ns).max(1);
                let _set = rt::sys::event_timer(env.info.event, deadline, env.info.timer_signals);
            }
        }
        if rt::sys::event_wait(env.info.event).is_err() {
            rt::exit_failed("waiting for an event is not possible");
        }
    }
}

/// The number that an option gives.
fn number(env: &rt::Env, key: &str, default: u64) -> u64 {
    match env.option(key).map(str::parse::<u32>) {
        None => default,
        Some(Ok(number)) => number.into(),
        Some(Err(_)) => {
            rt::exit_failed("options port, closing-port and rest-us: write a number, as in port=5001")
        }
    }
}

fn station(env: &rt::Env, now_ns: u64) -> Station<Ring> {
    let Some(info) = env.channel(ChannelKind::Net) else { rt::exit_failed("there is no net channel") };
    if info.pool.len < POOL_SIZE {
        rt::exit_failed("the net channel's pool is too small");
    }
    let Ok(client) = Client::connect(info) else { rt::exit_failed("the net channel does not fit") };
    let Ok(ip) = env.option("ip").unwrap_or("10.77.0.1/24").parse() else {
        rt::exit_failed("option ip: write it as in ip=10.77.0.1/24")
    };
    let port = |key: &str, default: u64| match u16::try_from(number(env, key, default)) {
        Ok(port) if port != 0 => port,
        _ => rt::exit_failed("options port and closing-port: write a TCP port, as in port=5001"),
    };
    let (port, closing_port) = (port("port", 5001), port("closing-port", 5003));
    let address = Address { mac: info.mac, ip, port, closing_port };
    log::info!("{ip} at TCP ports {port} and {closing_port}");
    Station::new(Port::new(Ring { client, pool: Pool::from_region(info.pool) }), &address, tsc(), now_ns)
}
