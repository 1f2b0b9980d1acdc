//! The VMs that stories run on: their names, and how the NAS exports its LUNs.

/// Host name of the first VM: NAS, controller and a node.
pub(crate) const FIRST: &str = "worker-1";
/// Host name of the second VM: another node.
pub(crate) const SECOND: &str = "worker-2";
/// The address at which the second VM serves commands.
pub(crate) const SECOND_ADDRESS: &str = "10.79.0.2:7000";

/// How the NAS exports its LUNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Export {
    /// With tgtd.
    Tgt,
    /// With the kernel's LIO target.
    Lio,
}

impl Export {
    pub(crate) const ALL: [Self; 2] = [Self::Tgt, Self::Lio];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tgt => "tgt",
            Self::Lio => "lio",
        }
    }
}

/// The machines that stories need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// How the NAS exports its LUNs.
    pub(crate) export: Export,
    /// Whether there is a second VM.
    pub(crate) second: bool,
}

impl Setup {
    /// All combinations; those that wait most come first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [true, false]
            .into_iter()
            .flat_map(|second| Export::ALL.map(|export| Self { export, second }))
    }

    /// `lio` alone, `lio-2` with a second machine.
    pub(crate) fn name(self) -> String {
        let export = self.export.name();
        if self.second {
            format!("{export}-2")
        } else {
            export.to_owned()
        }
    }
}
