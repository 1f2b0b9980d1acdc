//! The modes `discovery` and `discoverydb`.

use std::collections::BTreeSet;

use super::{Command, DEFAULT_PORT};
use crate::initiator::argv::{Op, Options, Portal};
use crate::initiator::console::{Exit, Failure};
use crate::initiator::discovery::{self, Source};
use crate::initiator::record::{self, Origin, Record, exactly};

impl Command<'_, '_> {
    pub(super) fn discovery(&mut self, options: &Options) -> Result<Exit, Failure> {
        if let Some(source) = source(options)? {
            return self.discover(&source, options);
        }
        self.list_sources(options)
    }

    pub(super) fn discoverydb(&mut self, options: &Options) -> Result<Exit, Failure> {
        let Some(source) = source(options)? else {
            return self.list_sources(options);
        };
        if options.discover {
            return self.discover(&source, options);
        }
        match options.op()? {
            Some(Op::New) => {
                discovery::add(self.host, &self.sessions, &source)?;
                self.console.print(format!(
                    "New discovery record for [{},{}] added.",
                    source.address, source.port
                ));
            }
            Some(Op::Delete) => discovery::delete(self.host, &source)?,
            None | Some(Op::Show) => self
                .console
                .print(discovery::show(self.host, &source)?.trim_end()),
            Some(Op::Update | Op::NonPersistent) => {
                return Err(Failure::invalid(
                    "this operation on a discovery record is not simulated by node-sim",
                ));
            }
        }
        Ok(Exit::Success)
    }

    fn discover(&mut self, source: &Source, options: &Options) -> Result<Exit, Failure> {
        if options.ops.contains(&Op::Show) {
            return Err(Failure::invalid(
                "discovery cannot be combined with --op show",
            ));
        }
        let found = discovery::discover(self.host, &self.sessions, source, options, self.console)?;
        if !options.login {
            return Ok(Exit::Success);
        }
        // Log in only once to a portal that was found twice for a target.
        let keys: BTreeSet<_> = found.iter().map(|record| record.key.clone()).collect();
        let mut records = Vec::new();
        for key in keys {
            let kept = record::list(self.host, &exactly(&key))?;
            records.extend(if kept.is_empty() {
                vec![Record::new(key, Some(1), Origin::Static)]
            } else {
                kept
            });
        }
        Ok(self.login(&records))
    }

    fn list_sources(&mut self, options: &Options) -> Result<Exit, Failure> {
        if !matches!(options.op()?, None | Some(Op::Show)) || options.login || options.discover {
            return Err(Failure::invalid("discovery needs --type and --portal"));
        }
        let sources = discovery::sources(self.host)?;
        for source in &sources {
            self.console.print(source);
        }
        Ok(if sources.is_empty() {
            Exit::NoObjects
        } else {
            Exit::Success
        })
    }
}

fn source(options: &Options) -> Result<Option<Source>, Failure> {
    match (&options.portal, options.send_targets) {
        (Some(Portal { host, port, .. }), true) => Ok(Some(Source {
            address: host.clone(),
            port: port.unwrap_or(DEFAULT_PORT),
        })),
        (None, true) => Err(Failure::invalid(
            "Please specify portal as <ipaddr>[:<ipport>]",
        )),
        (Some(_), false) => Err(Failure::invalid("discovery of a portal needs --type")),
        (None, false) => Ok(None),
    }
}
