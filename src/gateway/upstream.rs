//! What answers for a route, whichever protocol it speaks.

use std::time::Duration;

use super::application::{Application, Options};
use super::cgi::Outcome;
use super::proxy::Proxy;
use super::route::{Protocol, Target};
use super::variables::Facts;
use crate::error::{Fault, StartError};
use crate::log::Log;
use crate::message::Body;

pub enum Upstream {
    /// It answers as a CGI script does.
    Application(Application),
    /// It speaks HTTP itself.
    Proxy(Proxy),
}

impl Upstream {
    /// `connect` is the time for a connection to be made. `beside` is what
    /// answers for another route with the same addresses.
    pub fn new(
        target: Target,
        connect: Duration,
        options: Options,
        beside: Option<&Self>,
        log: Log,
    ) -> Result<Self, StartError> {
        Ok(match target.protocol {
            Protocol::Http | Protocol::Https => {
                Self::Proxy(Proxy::new(target, connect, options, log)?)
            }
            Protocol::Cgi(wire) => {
                let beside = match beside {
                    Some(Self::Application(application)) => Some(application),
                    Some(Self::Proxy(_)) | None => None,
                };
                let application = Application::new(wire, target, connect, options, beside, log);
                Self::Application(application)
            }
        })
    }

    pub async fn run(&self, facts: Facts<'_>, body: Body) -> Result<Outcome, Fault> {
        match self {
            Self::Application(application) => Box::pin(application.run(facts, body)).await,
            Self::Proxy(proxy) => Box::pin(proxy.run(facts, body)).await,
        }
    }
}
