//! The NAS as a state machine: a call and the current time go in, an answer and the effects to apply come out.
//! No clock, sockets or files. Open this for the `Nas` struct; `dispatch` has its entry points.

pub(crate) mod allocation;
pub(crate) mod api;
pub(crate) mod call;
pub(crate) mod clock;
pub(crate) mod code;
mod dispatch;
pub(crate) mod effect;
mod lingering;
pub(crate) mod model;
mod odd_rows;
pub(crate) mod params;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod timing;
pub(crate) mod token;

use crate::nas::effect::Effect;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rand::rngs::StdRng;

use crate::nas::api::auth::Auth;
use crate::nas::clock::Millis;
use crate::nas::model::{Dsm, Generation, Model};
use crate::nas::settings::Settings;
use crate::nas::state::State;
use crate::nas::state::account::Account;
use crate::nas::state::allocation::AllocationCache;
use crate::nas::state::boot::Boot;
use crate::nas::state::target::Target;
use crate::nas::state::volume::SpaceReturn;
use crate::nas::timing::Timing;

/// What is simulated: DSM version, model, latency and portal.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) dsm: Dsm,
    pub(crate) generation: Generation,
    pub(crate) model: Model,
    pub(crate) timing: Timing,
    /// Address and port of the targets, as answers report them.
    pub(crate) portal: SocketAddr,
}

/// The simulated NAS. Only `state` survives a restart.
#[derive(Debug)]
pub(crate) struct Nas {
    pub(crate) config: Config,
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) auth: Auth,
    pub(crate) rng: StdRng,
    pub(crate) pending_space: Vec<SpaceReturn>,
    pub(crate) boot: Option<Boot>,
    /// Boot time in milliseconds since 1970; negative if the uptime is longer than that.
    booted: i64,
    /// Deleted targets that keep their sessions, by IQN; see `lingering`. A restart ends them.
    pub(crate) lingering: BTreeMap<String, Target>,
    /// When a delete or clone of a LUN is due to finish, by LUN uuid. The LUN's own fields are authoritative.
    timers: BTreeSet<(Millis, String)>,
    /// Space that LUNs use on their volumes.
    pub(crate) allocation: AllocationCache,
    effects: BTreeSet<Effect>,
}

impl Nas {
    pub(crate) fn new(
        config: Config,
        settings: Settings,
        state: State,
        accounts: Vec<Account>,
        rng: StdRng,
    ) -> Self {
        Self {
            config,
            settings,
            state,
            auth: Auth::new(accounts),
            rng,
            pending_space: Vec::new(),
            boot: None,
            booted: 0,
            lingering: BTreeMap::new(),
            timers: BTreeSet::new(),
            allocation: AllocationCache::default(),
            effects: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
