//! The kernel's error numbers, written and read as numbers.

use rustix::io::Errno;
use serde::{Deserialize as _, Deserializer, Serializer};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
pub(super) fn serialize<S: Serializer>(errno: &Errno, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i32(errno.raw_os_error())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Errno, D::Error> {
    // One that no kernel has would not do for an error.
    let number = i32::deserialize(deserializer)?;
    if (1..4096).contains(&number) { Ok(Errno::from_raw_os_error(number)) } else { Err(serde::de::Error::custom("not an error number")) }
}
