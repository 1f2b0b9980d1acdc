//! The Container Storage Interface 1.12 in Rust: messages, servers and clients, generated from `csi.proto`.
//!
//! No logic lives here. Messages that carry secrets have a `Debug` that does not print them.

/// `csi.v1`, as generated.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    clippy::wildcard_enum_match_arm,
    reason = "generated code: its shape is decided by the specification and by prost"
)]
pub mod csi {
    tonic::include_proto!("csi.v1");
    use super::Redacted;
    include!(concat!(env!("OUT_DIR"), "/debug.rs"));
}

/// The serialized `google.protobuf.FileDescriptorSet` of `csi.proto` and its imports, options included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Stands in for a map of secrets in a Debug: says how many there are, and neither their names nor their values.
struct Redacted(usize);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("{}"),
            n => write!(f, "{{{n} secret(s) ***}}"),
        }
    }
}

#[cfg(test)]
mod tests;
