//! An error and what caused it on one line, for where only one line is: a slot's last error, an answer, an exit.

use std::error::Error;

/// "what: because: because", each in its own words. No `Display` of ours repeats its source.
#[must_use]
pub(crate) fn with_causes(error: &dyn Error) -> String {
    std::iter::successors(error.source(), |cause| (**cause).source()).fold(error.to_string(), |words, cause| format!("{words}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("one")]
    struct One(#[source] Two);

    #[derive(Debug, thiserror::Error)]
    #[error("two")]
    struct Two(#[source] std::fmt::Error);

    #[test]
    fn all_causes_are_told_in_order() {
        assert_eq!(with_causes(&One(Two(std::fmt::Error))), format!("one: two: {}", std::fmt::Error));
        assert_eq!(with_causes(&std::fmt::Error), std::fmt::Error.to_string());
    }
}
