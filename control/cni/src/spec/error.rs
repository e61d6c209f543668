//! Errors as the specification counts them.

use serde::{Deserialize, Serialize};

use super::Version;

/// An error for the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// What kind it is.
    pub code: Code,
    /// One line: what went wrong, and what to do.
    pub msg: String,
    /// More of it, may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The line for stdout: `{"cniVersion", "code", "msg", "details"}`.
    pub fn to_json(&self, version: Version) -> String {
        serde_json::json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.msg,
            "details": self.details,
        })
        .to_string()
    }
}

/// The specification's codes, and ours from 100 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum Code {
    /// 1: the configuration's version is not supported.
    IncompatibleVersion,
    /// 2: a field of the configuration is understood and cannot be honoured.
    UnsupportedField,
    /// 3: the container is unknown or gone; there is nothing to clean up.
    UnknownContainer,
    /// 4: a `CNI_*` variable is missing or has no acceptable value.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: the input is not JSON.
    Decode,
    /// 7: the configuration is JSON and makes no sense.
    InvalidConfig,
    /// 11: this will pass, try again.
    TryAgainLater,
    /// 50: STATUS only, an ADD would fail now.
    NotAvailable,
    /// 51: STATUS only, an ADD would fail and existing pods may be cut off.
    LimitedConnectivity,
    /// 100: a defect of ours.
    Internal,
    /// 101: no free address.
    AddressesExhausted,
    /// 102: the interface is there already.
    InterfaceExists,
    /// 103: CHECK found something else than ADD had reported.
    CheckFailed,
    /// Any other number.
    Other(u32),
}

/// Each code that has a name, with its number.
const NAMED: [(Code, u32); 14] = [
    (Code::IncompatibleVersion, 1),
    (Code::UnsupportedField, 2),
    (Code::UnknownContainer, 3),
    (Code::InvalidEnvironment, 4),
    (Code::Io, 5),
    (Code::Decode, 6),
    (Code::InvalidConfig, 7),
    (Code::TryAgainLater, 11),
    (Code::NotAvailable, 50),
    (Code::LimitedConnectivity, 51),
    (Code::Internal, 100),
    (Code::AddressesExhausted, 101),
    (Code::InterfaceExists, 102),
    (Code::CheckFailed, 103),
];

impl From<u32> for Code {
    fn from(number: u32) -> Self {
        NAMED.iter().find(|(_, named)| *named == number).map_or(Self::Other(number), |(code, _)| *code)
    }
}

impl From<Code> for u32 {
    fn from(code: Code) -> Self {
        match code {
            Code::Other(number) => number,
            // Every other variant is in the table; a missing one would read as a defect of ours.
            named => NAMED.iter().find(|(code, _)| *code == named).map_or(100, |(_, number)| *number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers_both_ways() {
        for (code, number) in NAMED {
            assert_eq!((Code::from(number), u32::from(code)), (code, number));
        }
        assert_eq!(u32::from(Code::from(999)), 999);
    }

    #[test]
    fn the_printed_error_has_the_four_fields_of_the_specification() {
        let error = CniError::new(Code::Io, "reading").with_details("eof");
        assert_eq!(
            error.to_json(Version::V0_4_0),
            r#"{"cniVersion":"0.4.0","code":5,"details":"eof","msg":"reading"}"#
        );
    }
}
