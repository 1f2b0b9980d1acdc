//! Table of the settings of a node record: open-iscsi's names, its shipped defaults, and the valid values.

use crate::initiator::console::Failure;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of a record's key or origin; cannot be changed.
    Fixed,
    /// An integer.
    Number,
    /// Any single line of text.
    Text,
    /// Like text, but masked in output.
    Secret,
    /// One of these values.
    Choice(&'static [&'static str]),
}

/// One setting.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    pub(super) kind: Kind,
}

impl Setting {
    /// Checks that the value is valid.
    pub(super) fn accept(&self, value: &str) -> Result<(), Failure> {
        let fits = match self.kind {
            Kind::Fixed => false,
            Kind::Number => value.parse::<i64>().is_ok(),
            // A line break would be read back as another setting.
            Kind::Text | Kind::Secret => !value.contains(['\n', '\r']),
            Kind::Choice(choices) => choices.contains(&value),
        };
        if fits {
            return Ok(());
        }
        let shown = if self.kind == Kind::Secret {
            "********"
        } else {
            value
        };
        Err(Failure::invalid(format!(
            "unknown value format '{shown}' for parameter name '{}'",
            self.name
        )))
    }
}

const STARTUP: Kind = Kind::Choice(&["manual", "automatic", "onboot"]);
const YES_NO: Kind = Kind::Choice(&["No", "Yes"]);
const DIGEST: Kind = Kind::Choice(&["None", "CRC32C", "CRC32C,None", "None,CRC32C"]);

const fn setting(name: &'static str, default: &'static str, kind: Kind) -> Setting {
    Setting {
        name,
        default,
        kind,
    }
}

/// All settings, in the order of a record.
pub(super) const SETTINGS: &[Setting] = &[
    setting("node.name", "", Kind::Fixed),
    setting("node.tpgt", "", Kind::Fixed),
    setting("node.startup", "manual", STARTUP),
    setting("node.leading_login", "No", YES_NO),
    setting("iface.iscsi_ifacename", "default", Kind::Fixed),
    setting("iface.transport_name", "tcp", Kind::Choice(&["tcp"])),
    setting("node.discovery_address", "", Kind::Fixed),
    setting("node.discovery_port", "", Kind::Fixed),
    setting("node.discovery_type", "", Kind::Fixed),
    setting("node.session.initial_cmdsn", "0", Kind::Number),
    setting("node.session.initial_login_retry_max", "8", Kind::Number),
    setting("node.session.xmit_thread_priority", "-20", Kind::Number),
    setting("node.session.cmds_max", "128", Kind::Number),
    setting("node.session.queue_depth", "32", Kind::Number),
    setting("node.session.nr_sessions", "1", Kind::Number),
    setting(
        "node.session.auth.authmethod",
        "None",
        Kind::Choice(&["None", "CHAP"]),
    ),
    setting("node.session.auth.username", "", Kind::Text),
    setting("node.session.auth.password", "", Kind::Secret),
    setting("node.session.auth.username_in", "", Kind::Text),
    setting("node.session.auth.password_in", "", Kind::Secret),
    setting("node.session.auth.chap_algs", "MD5", Kind::Text),
    setting(
        "node.session.timeo.replacement_timeout",
        "120",
        Kind::Number,
    ),
    setting("node.session.err_timeo.abort_timeout", "15", Kind::Number),
    setting(
        "node.session.err_timeo.lu_reset_timeout",
        "30",
        Kind::Number,
    ),
    setting(
        "node.session.err_timeo.tgt_reset_timeout",
        "30",
        Kind::Number,
    ),
    setting(
        "node.session.err_timeo.host_reset_timeout",
        "60",
        Kind::Number,
    ),
    setting("node.session.iscsi.FastAbort", "Yes", YES_NO),
    setting("node.session.iscsi.InitialR2T", "No", YES_NO),
    setting("node.session.iscsi.ImmediateData", "Yes", YES_NO),
    setting(
        "node.session.iscsi.FirstBurstLength",
        "262144",
        Kind::Number,
    ),
    setting(
        "node.session.iscsi.MaxBurstLength",
        "16776192",
        Kind::Number,
    ),
    setting("node.session.iscsi.DefaultTime2Retain", "0", Kind::Number),
    setting("node.session.iscsi.DefaultTime2Wait", "2", Kind::Number),
    setting("node.session.iscsi.MaxConnections", "1", Kind::Number),
    setting("node.session.iscsi.MaxOutstandingR2T", "1", Kind::Number),
    setting("node.session.iscsi.ERL", "0", Kind::Number),
    setting(
        "node.session.scan",
        "auto",
        Kind::Choice(&["manual", "auto"]),
    ),
    setting("node.session.reopen_max", "0", Kind::Number),
    setting("node.session.sess_reopen_log_freq", "1", Kind::Number),
    setting("node.conn[0].address", "", Kind::Fixed),
    setting("node.conn[0].port", "", Kind::Fixed),
    setting("node.conn[0].startup", "manual", STARTUP),
    setting("node.conn[0].tcp.window_size", "524288", Kind::Number),
    setting("node.conn[0].tcp.type_of_service", "0", Kind::Number),
    setting("node.conn[0].tcp.congestion_control", "", Kind::Text),
    setting("node.conn[0].timeo.logout_timeout", "15", Kind::Number),
    setting("node.conn[0].timeo.login_timeout", "15", Kind::Number),
    setting("node.conn[0].timeo.auth_timeout", "45", Kind::Number),
    setting("node.conn[0].timeo.noop_out_interval", "5", Kind::Number),
    setting("node.conn[0].timeo.noop_out_timeout", "5", Kind::Number),
    setting(
        "node.conn[0].iscsi.MaxXmitDataSegmentLength",
        "0",
        Kind::Number,
    ),
    setting(
        "node.conn[0].iscsi.MaxRecvDataSegmentLength",
        "262144",
        Kind::Number,
    ),
    setting("node.conn[0].iscsi.HeaderDigest", "None", DIGEST),
    setting("node.conn[0].iscsi.DataDigest", "None", DIGEST),
    setting("node.conn[0].iscsi.IFMarker", "No", YES_NO),
    setting("node.conn[0].iscsi.OFMarker", "No", YES_NO),
];
