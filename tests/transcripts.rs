//! One test for each file of tests/transcripts, on one standard root.

use crate::support::{Server, transcript};

/// A folder of files and the scripts that the transcripts speak to.
fn server() -> Server {
    ["echo", "noread", "status", "loc", "early"]
        .into_iter()
        .fold(Server::new().tree("site"), crate::support::Setup::fixture)
        .start()
}

macro_rules! transcripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            transcript::run(stringify!($name), &server());
        })*

        #[test]
        fn every_transcript_is_run() {
            assert_eq!(transcript::names(), [$(stringify!($name)),*]);
        }
    };
}

// In alphabetical order.
transcripts! {
    bad_requests
    connections
    error_pages
    expectations
    methods
}
