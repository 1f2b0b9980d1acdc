//! Starts the programs under test and their clients: dsm-sim as the NAS, node-sim as the node, and the shipped driver.
//!
//! | module | owns |
//! |---|---|
//! | [`test_cluster`] | one NAS, one node and one driver; cleaned up even after `kill -9` |
//! | [`nas`], [`initiator`], [`plugin`] | the three processes and their clients |
//! | [`test_volume`] | a volume's CSI calls: create, publish, stage, write, expand, and all the way back |
//! | [`call_costs`] | how many DSM requests each CSI call makes |
//! | [`tools`], [`inspect`] | file systems, checksums and LUN images, read with the system's own tools |
//! | [`writer`] | a pod that writes continuously and verifies what it reads |
//! | [`janitor`] | cleans up after a test cluster, however its process ended |
//! | [`process`] | child processes |
//! | [`until`], [`skip`] | bounded waits; tests that cannot run on this machine |

pub mod call_costs;
pub mod initiator;
pub mod inspect;
pub mod janitor;
pub mod nas;
pub mod plugin;
pub mod process;
pub mod skip;
pub mod test_cluster;
pub mod test_volume;
pub mod tools;
pub mod until;
pub mod writer;
