//! The NAS as a state machine: a call and a moment go in, an answer and the effects still to be made come out.
//! No clock, no sockets, no files.

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
use crate::nas::state::allocation::Taken;
use crate::nas::state::boot::Boot;
use crate::nas::state::target::Target;
use crate::nas::state::volume::SpaceReturn;
use crate::nas::timing::Timing;

/// What does not change while the NAS runs.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) dsm: Dsm,
    pub(crate) generation: Generation,
    pub(crate) model: Model,
    pub(crate) timing: Timing,
    /// Where targets listen: an address of the NAS, and the port that targets tell.
    pub(crate) portal: SocketAddr,
}

/// A NAS.
#[derive(Debug)]
pub(crate) struct Nas {
    pub(crate) config: Config,
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) auth: Auth,
    pub(crate) rng: StdRng,
    pub(crate) returning: Vec<SpaceReturn>,
    pub(crate) boot: Option<Boot>,
    /// When it came up, in milliseconds since 1970; before that, where a clock stands early.
    booted: i64,
    /// Deleted targets that keep their sessions, by IQN; see `lingering`. A restart ends them.
    pub(crate) lingering: BTreeMap<String, Target>,
    /// When DSM is done with what it does to LUNs after its answers. The LUNs themselves know best.
    timers: BTreeSet<(Millis, String)>,
    /// What LUNs take of their volumes.
    pub(crate) taken: Taken,
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
            returning: Vec::new(),
            boot: None,
            booted: 0,
            lingering: BTreeMap::new(),
            timers: BTreeSet::new(),
            taken: Taken::default(),
            effects: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
