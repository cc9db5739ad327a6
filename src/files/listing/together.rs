//! One answer for all who ask for the same at the same time.
//!
//! Who asks while an answer is being made doesn't take that one, which may
//! have looked at something before it changed. He takes the next, which is
//! begun when this one is done, together with everyone who came meanwhile. So
//! an answer is as fresh as if each had made his own, and however many ask,
//! only one at a time is at work.
//!
//! An answer that turns out to be the same as the one before it, where that one
//! is still in use, is that one: clients that take their time share it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OnceCell, Semaphore};

/// Answers that are made at once: one while another is sent. With one alone
/// half of a machine with two cores is idle; more make the rounds smaller.
const AT_ONCE: usize = 2;

/// Answers that are being made or still in use, by what was asked.
pub(super) struct Together<K, A> {
    questions: Mutex<HashMap<K, Weak<Question<A>>>>,
}

/// One thing that is asked.
struct Question<A> {
    /// Held while an answer is made.
    turn: Semaphore,
    /// Who comes now takes part in this.
    open: Mutex<Option<Arc<Round<A>>>>,
    last: Mutex<Weak<Answer<A>>>,
}

/// Those who get the same answer. The first makes it; if he gives up or fails,
/// the next does.
type Round<A> = OnceCell<Arc<Answer<A>>>;

pub(super) struct Answer<A> {
    pub(super) content: A,
    /// Who asks again while this is in use may get this again.
    _question: Arc<Question<A>>,
}

impl<K, A> Default for Together<K, A> {
    fn default() -> Self {
        Self {
            questions: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash, A: PartialEq> Together<K, A> {
    /// What `make` comes to, here or for someone else; it was begun after this
    /// was called.
    pub(super) async fn answer<F, E>(
        &self,
        key: K,
        make: impl FnOnce() -> F,
    ) -> Result<Arc<Answer<A>>, E>
    where
        F: Future<Output = Result<A, E>>,
    {
        let question = self.question(key);
        let round = question.join();
        let answer = round.get_or_try_init(|| async {
            // Only a semaphore that was closed has none.
            let _turn = question.turn.acquire().await;
            question.close(&round).await;
            let content = make().await?;
            Ok(question.share(content))
        });
        answer.await.cloned()
    }

    fn question(&self, key: K) -> Arc<Question<A>> {
        let mut questions = lock(&self.questions);
        if let Some(question) = questions.get(&key).and_then(Weak::upgrade) {
            return question;
        }
        questions.retain(|_, question| question.strong_count() > 0);
        let question = Arc::new(Question {
            turn: Semaphore::new(AT_ONCE),
            open: Mutex::default(),
            last: Mutex::default(),
        });
        questions.insert(key, Arc::downgrade(&question));
        question
    }
}

impl<A: PartialEq> Question<A> {
    fn join(&self) -> Arc<Round<A>> {
        Arc::clone(lock(&self.open).get_or_insert_default())
    }

    /// Whoever comes from here on is in the next round. Those who are at the
    /// door are let in: their requests lie in sockets that are read next.
    async fn close(&self, round: &Arc<Round<A>>) {
        let mut members = 0;
        while Arc::strong_count(round) > members {
            members = Arc::strong_count(round);
            tokio::task::yield_now().await;
        }
        let mut open = lock(&self.open);
        if open.as_ref().is_some_and(|open| Arc::ptr_eq(open, round)) {
            *open = None;
        }
    }

    fn share(self: &Arc<Self>, content: A) -> Arc<Answer<A>> {
        let mut last = lock(&self.last);
        if let Some(last) = last.upgrade()
            && last.content == content
        {
            return last;
        }
        let answer = Arc::new(Answer {
            content,
            _question: Arc::clone(self),
        });
        *last = Arc::downgrade(&answer);
        answer
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{oneshot, watch};

    /// Asks for the number of the attempt, which ends when `gate` is open.
    async fn ask(
        together: Arc<Together<(), u32>>,
        attempts: Arc<AtomicU32>,
        mut gate: watch::Receiver<bool>,
        started: oneshot::Sender<()>,
    ) -> u32 {
        let answer: Result<_, ()> = together
            .answer((), || async move {
                let attempt = attempts.fetch_add(1, Ordering::SeqCst);
                let _ = started.send(());
                gate.wait_for(|open| *open).await.map_err(|_| ())?;
                Ok(attempt)
            })
            .await;
        answer.unwrap().content
    }

    #[tokio::test]
    async fn who_comes_while_an_answer_is_made_gets_the_next_one() {
        let together = Arc::new(Together::default());
        let attempts = Arc::new(AtomicU32::new(0));
        let (open, gate) = watch::channel(false);
        let start = || {
            let (started, start_seen) = oneshot::channel();
            let asking = ask(together.clone(), attempts.clone(), gate.clone(), started);
            (tokio::spawn(asking), start_seen)
        };
        let mut first = Vec::new();
        for _ in 0..AT_ONCE {
            let (asking, start_seen) = start();
            start_seen.await.unwrap();
            first.push(asking);
        }
        let later: Vec<_> = (0..8).map(|_| start().0).collect();
        // All of them have asked.
        let question = together.question(());
        while question
            .open
            .lock()
            .unwrap()
            .as_ref()
            .is_none_or(|round| Arc::strong_count(round) <= later.len())
        {
            tokio::task::yield_now().await;
        }
        open.send_replace(true);
        let before = u32::try_from(AT_ONCE).unwrap();
        for (asking, number) in first.into_iter().zip(0..) {
            assert_eq!(asking.await.unwrap(), number);
        }
        for asking in later {
            assert_eq!(asking.await.unwrap(), before);
        }
        assert_eq!(attempts.load(Ordering::SeqCst), before + 1);
    }

    #[tokio::test]
    async fn who_gives_up_or_fails_leaves_the_others_their_answer() {
        let together = Arc::new(Together::default());
        let attempts = Arc::new(AtomicU32::new(0));
        let (open, gate) = watch::channel(false);
        let (started, start_seen) = oneshot::channel();
        let leader = tokio::spawn(ask(
            together.clone(),
            attempts.clone(),
            gate.clone(),
            started,
        ));
        start_seen.await.unwrap();
        let (started, start_seen) = oneshot::channel();
        let next = tokio::spawn(ask(together.clone(), attempts.clone(), gate, started));
        leader.abort();
        start_seen.await.unwrap();
        open.send_replace(true);
        assert_eq!(next.await.unwrap(), 1);
        let failed = together.answer((), || async { Err("no") }).await;
        assert!(failed.is_err());
        let after = together.answer((), || async { Ok::<_, ()>(7) }).await;
        assert_eq!(after.unwrap().content, 7);
    }

    #[tokio::test]
    async fn equal_answers_are_one_as_long_as_one_is_in_use() {
        let together = Together::default();
        let ask = async |content: u32| {
            let answer: Result<_, ()> = together.answer("key", || async { Ok(content) }).await;
            answer.unwrap()
        };
        let first = ask(1).await;
        assert!(Arc::ptr_eq(&first, &ask(1).await));
        assert_eq!(ask(2).await.content, 2);
        drop(first);
        assert_eq!(ask(1).await.content, 1);
        let other: Result<_, ()> = together.answer("other", || async { Ok(3) }).await;
        assert_eq!(other.unwrap().content, 3);
        // What nobody uses any more is forgotten when something new is asked.
        assert_eq!(together.questions.lock().unwrap().len(), 1);
    }
}
