//! One prepared interpreter: what is asked of it, what it answers, its end.
//!
//! It makes processes for the server: each is the server's own child
//! (`CLONE_PARENT`), and says itself that it runs. So there is never a doubt
//! whether a request was started: if the answer came, it was; if the socket
//! came to its end without it, it was not and never will be.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::ready;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout};

use super::message::{ANSWER_BYTES, Message, Said};
use crate::gateway::process::{Ended, Process, Processes};

/// The longest wait for an answer, counted from the one before.
const ANSWER: Duration = Duration::from_millis(250);
/// From its start to its being ready.
const READY: Duration = Duration::from_secs(20);
/// How long processes that it has begun may take to say so, after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Requests on their way to it; more are left to exec.
const MOST_WAITING: usize = 64;

pub struct Zygote {
    /// Of its process, for the log.
    pub pid: u32,
    socket: AsyncFd<OwnedFd>,
    processes: Processes,
    state: Mutex<State>,
    /// It was killed: its reader need not wait for long.
    killed: Notify,
}

struct State {
    /// Present until its end was seen.
    process: Option<Process>,
    stand: Stand,
    number: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// When it was started, or answered last.
    moved: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stand {
    Starting,
    Ready,
    /// Gets no more requests and is ended when all are answered.
    Retired,
    /// Was killed, or has ended by itself.
    Gone,
}

/// A request that is not answered yet. Whoever asked may have gone.
struct Waiting {
    sent: Instant,
    place: OwnedSemaphorePermit,
    answer: oneshot::Sender<Answer>,
}

/// What became of a request.
pub enum Answer {
    Runs(Process),
    /// Nothing was started; the place is given back.
    Plain(OwnedSemaphorePermit),
    /// It was started and can't be held; it was ended.
    Lost(io::Error),
}

/// What its reader has to tell.
pub enum Event {
    Ready(String),
    Never(String),
    Log(String),
    /// It is gone. `crashed`: neither the server nor itself wished it.
    Gone {
        crashed: bool,
        ready: bool,
    },
}

impl Zygote {
    pub fn new(socket: AsyncFd<OwnedFd>, mut process: Process, processes: Processes) -> Self {
        Self {
            pid: process.pid(),
            socket,
            processes,
            state: Mutex::new(State {
                process: Some(process),
                stand: Stand::Starting,
                number: 0,
                waiting: BTreeMap::new(),
                moved: Instant::now(),
            }),
            killed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a request run. If the future is dropped, what was started is ended.
    /// The streams are the caller's still, to be used again after `Plain`.
    pub async fn run(
        &self,
        message: &Message,
        streams: [BorrowedFd<'_>; 3],
        place: OwnedSemaphorePermit,
    ) -> Answer {
        let mut answer = match self.ask(message, streams, place) {
            Ok(answer) => answer,
            Err(place) => return Answer::Plain(place),
        };
        loop {
            match timeout(ANSWER, &mut answer).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(_)) => return Answer::Lost(io::ErrorKind::BrokenPipe.into()),
                Err(_elapsed) => self.end_if_stuck(),
            }
        }
    }

    /// Sends it. An error gives the place back: nothing was sent.
    fn ask(
        &self,
        message: &Message,
        streams: [BorrowedFd<'_>; 3],
        place: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Answer>, OwnedSemaphorePermit> {
        // Locked until it is sent: the answer finds its entry.
        let mut state = self.lock();
        if state.stand != Stand::Ready || state.waiting.len() >= MOST_WAITING {
            return Err(place);
        }
        state.number += 1;
        let number = state.number;
        if message.send(number, streams, &self.socket).is_err() {
            return Err(place);
        }
        let (sender, answer) = oneshot::channel();
        let waiting = Waiting {
            sent: Instant::now(),
            place,
            answer: sender,
        };
        state.waiting.insert(number, waiting);
        Ok(answer)
    }

    /// Ends it if it owes an answer, or its being ready, for too long.
    pub fn end_if_stuck(&self) {
        let mut state = self.lock();
        let oldest = state.waiting.values().next().map(|waiting| waiting.sent);
        let (since, limit) = match (state.stand, oldest) {
            (Stand::Starting, _) => (state.moved, READY),
            (_, Some(sent)) => (sent.max(state.moved), ANSWER),
            _ => return,
        };
        if since.elapsed() >= limit {
            self.kill(&mut state);
        }
    }

    /// It gets no more requests; those that were sent are still answered.
    pub fn retire(&self) {
        let mut state = self.lock();
        if state.stand == Stand::Gone {
            return;
        }
        state.stand = Stand::Retired;
        if state.waiting.is_empty() {
            self.kill_quietly(&mut state);
        }
    }

    /// Works on one that is stopped too.
    fn kill(&self, state: &mut State) {
        state.stand = Stand::Gone;
        self.kill_quietly(state);
    }

    fn kill_quietly(&self, state: &mut State) {
        if let Some(process) = &mut state.process {
            process.kill();
        }
        self.killed.notify_one();
    }

    /// Reads its answers until its end, and settles what is left then.
    pub async fn listen(self: Arc<Self>, mut tell: impl FnMut(Event)) {
        let was_ready = self.read(&mut tell).await;
        let retired = {
            let mut state = self.lock();
            let retired = state.stand == Stand::Retired;
            self.kill(&mut state);
            retired
        };
        self.settle(&mut tell).await;
        // Its number may be another's from here on.
        let process = self.lock().process.take();
        let left = was_ready && left_by_itself(process).await;
        tell(Event::Gone {
            crashed: !retired && !left,
            ready: was_ready,
        });
    }

    /// Until it is killed, or nothing more comes, or what comes is no answer.
    async fn read(&self, tell: &mut impl FnMut(Event)) -> bool {
        let mut was_ready = false;
        loop {
            let received = tokio::select! {
                received = self.receive() => received,
                () = self.killed.notified() => return was_ready,
            };
            let Some(said) = received.as_deref().and_then(Said::parse) else {
                return was_ready;
            };
            was_ready |= matches!(said, Said::Ready(_));
            if !self.hear(said, tell) {
                return was_ready;
            }
        }
    }

    /// After it was killed: what its children still have to say; then nothing
    /// that was asked will ever be started.
    async fn settle(&self, tell: &mut impl FnMut(Event)) {
        let to_the_end = async {
            while let Some(bytes) = self.receive().await {
                self.hear_last(&bytes, tell);
            }
        };
        if timeout(LAST_WORDS, to_the_end).await.is_err() {
            // A child hangs before its answer. It can't give it any more.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
            loop {
                match self.receive_now() {
                    Ok(Some(bytes)) => self.hear_last(&bytes, tell),
                    Err(Errno::INTR | Errno::CONNRESET) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        }
        let waiting = std::mem::take(&mut self.lock().waiting);
        for Waiting { place, answer, .. } in waiting.into_values() {
            // A client that has left needs no answer.
            let _ = answer.send(Answer::Plain(place));
        }
    }

    fn hear_last(&self, bytes: &[u8], tell: &mut impl FnMut(Event)) {
        if let Some(said @ (Said::Ran(..) | Said::No(..))) = Said::parse(bytes) {
            self.hear(said, tell);
        }
    }

    /// `false`: that can't be.
    fn hear(&self, said: Said, tell: &mut impl FnMut(Event)) -> bool {
        match said {
            Said::Ready(version) => {
                let mut state = self.lock();
                state.moved = Instant::now();
                match state.stand {
                    Stand::Starting => state.stand = Stand::Ready,
                    Stand::Ready => return false,
                    Stand::Retired | Stand::Gone => return true,
                }
                drop(state);
                tell(Event::Ready(version));
            }
            Said::Never(reason) => tell(Event::Never(reason)),
            Said::Log(text) => tell(Event::Log(text)),
            Said::Ran(number, pid) => return self.answer(number, |place| self.hold(pid, place)),
            Said::No(number, _reason) => return self.answer(number, Answer::Plain),
        }
        true
    }

    fn hold(&self, pid: Pid, place: OwnedSemaphorePermit) -> Answer {
        match self.processes.adopt(pid, Some(place)) {
            Ok(process) => Answer::Runs(process),
            Err(error) => {
                self.processes.end_lost(pid);
                Answer::Lost(error)
            }
        }
    }

    fn answer(&self, number: u64, answer: impl FnOnce(OwnedSemaphorePermit) -> Answer) -> bool {
        let mut state = self.lock();
        state.moved = Instant::now();
        let waiting = state.waiting.remove(&number);
        if state.stand == Stand::Retired && state.waiting.is_empty() {
            self.kill_quietly(&mut state);
        }
        drop(state);
        let Some(waiting) = waiting else {
            return false;
        };
        // To a client that has left: then this drops the process, which ends it.
        let _ = waiting.answer.send(answer(waiting.place));
        true
    }

    /// The next datagram; `None` at the end.
    async fn receive(&self) -> Option<Vec<u8>> {
        poll_fn(|cx| {
            loop {
                let Ok(mut ready) = ready!(self.socket.poll_read_ready(cx)) else {
                    return std::task::Poll::Ready(None);
                };
                match self.receive_now() {
                    Ok(bytes) => return std::task::Poll::Ready(bytes),
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    // It ended with requests unread. That is told before the
                    // answers that came before.
                    Err(Errno::INTR | Errno::CONNRESET) => {}
                    Err(_) => return std::task::Poll::Ready(None),
                }
            }
        })
        .await
    }

    fn receive_now(&self) -> Result<Option<Vec<u8>>, Errno> {
        let mut buffer = [0; ANSWER_BYTES];
        let (_, received) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
        Ok((received > 0).then(|| buffer[..received.min(ANSWER_BYTES)].to_vec()))
    }
}

/// Whether it has ended with success: it found that it is out of date.
async fn left_by_itself(process: Option<Process>) -> bool {
    let Some(mut process) = process else {
        return false;
    };
    // It was killed, if it had not ended.
    let ended = timeout(LAST_WORDS, process.ended()).await;
    matches!(ended, Ok(Ended::Exit(0)))
}
