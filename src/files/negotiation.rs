//! The Accept-Encoding field (RFC 9110 §12.5.3): which content codings a client
//! takes, and which of them it likes better.
//!
//! Two readings are our own. A coding that only `*` stands for comes after those
//! that are named, gzip first: not every client that sends `*` knows all there
//! are. Of a coding that is named twice the smaller weight counts.

/// A content coding (RFC 9110 §8.4.1, RFC 7932, RFC 8878).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Coding {
    Br,
    Zstd,
    Gzip,
}

impl Coding {
    /// The name in header fields.
    pub(super) fn token(self) -> &'static str {
        match self {
            Self::Br => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

/// What a client takes. Clients that are answered alike have equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Of each [`Coding`]: more is better; 0 if identity is better, or the coding
    /// is refused.
    ranks: [u8; 3],
    /// The bytes as they are may be sent.
    pub(super) identity: bool,
}

impl Accepted {
    /// The bytes as they are and nothing else; also what a client gets that says
    /// nothing.
    pub(super) const IDENTITY: Self = Self {
        ranks: [0; 3],
        identity: true,
    };

    /// Of the values of the Accept-Encoding fields.
    pub(super) fn of<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Self {
        let weights = Weights::of(fields);
        let identity = weights.of_identity();
        // What is liked as much as identity is sent: it is shorter.
        let scores = [
            weights.of_coding(Coding::Br),
            weights.of_coding(Coding::Zstd),
            weights.of_coding(Coding::Gzip),
        ]
        .map(|score| if score < identity { 0 } else { score });
        Self {
            ranks: scores.map(|score| {
                let beaten = scores.iter().filter(|&&other| other < score);
                if score == 0 {
                    0
                } else {
                    beaten.fold(1, |rank, _| rank + 1)
                }
            }),
            identity: identity > 0,
        }
    }

    /// Sets of codings that are liked alike, the best first. Within a set the
    /// order is that of [`Coding`].
    pub(super) fn sets(self) -> impl Iterator<Item = Vec<Coding>> {
        const ALL: [Coding; 3] = [Coding::Br, Coding::Zstd, Coding::Gzip];
        (1..=3).rev().filter_map(move |rank| {
            let of_rank = |&coding: &Coding| self.ranks[coding as usize] == rank;
            let set: Vec<Coding> = ALL.into_iter().filter(of_rank).collect();
            (!set.is_empty()).then_some(set)
        })
    }

    /// Whether it takes any coding at all.
    pub(super) fn any(self) -> bool {
        self.ranks != [0; 3]
    }
}

/// The weights in thousandths, as far as they are given.
#[derive(Default)]
struct Weights {
    codings: [Option<u16>; 3],
    identity: Option<u16>,
    /// `*`
    others: Option<u16>,
}

impl Weights {
    fn of<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut weights = Self::default();
        let members = fields.flat_map(|field| field.split(|&b| b == b','));
        // What is no member of the list is ignored, and nothing but that.
        for (name, weight) in members.filter_map(member) {
            if let Some(slot) = weights.slot(name) {
                *slot = Some(slot.map_or(weight, |other| other.min(weight)));
            }
        }
        weights
    }

    fn slot(&mut self, name: &[u8]) -> Option<&mut Option<u16>> {
        let is = |token: &str| name.eq_ignore_ascii_case(token.as_bytes());
        if is("gzip") || is("x-gzip") {
            Some(&mut self.codings[Coding::Gzip as usize])
        } else if is("br") {
            Some(&mut self.codings[Coding::Br as usize])
        } else if is("zstd") {
            Some(&mut self.codings[Coding::Zstd as usize])
        } else if is("identity") {
            Some(&mut self.identity)
        } else if is("*") {
            Some(&mut self.others)
        } else {
            None
        }
    }

    /// A number to compare by: the weight first, then how it was given.
    fn of_coding(&self, coding: Coding) -> u16 {
        match (self.codings[coding as usize], self.others) {
            (Some(0), _) | (None, Some(0) | None) => 0,
            (Some(weight), _) => 8 * weight + 4,
            (None, Some(weight)) => {
                8 * weight
                    + match coding {
                        Coding::Gzip => 3,
                        Coding::Zstd => 2,
                        Coding::Br => 1,
                    }
            }
        }
    }

    /// Acceptable unless it is refused, by itself or with all others. Where
    /// nothing is said of it, any coding is liked better.
    fn of_identity(&self) -> u16 {
        self.identity.or(self.others).map_or(1, |weight| 8 * weight)
    }
}

/// `codings [ weight ]`
fn member(text: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = text.splitn(2, |&b| b == b';');
    let name = parts.next()?.trim_ascii();
    let weight = match parts.next() {
        Some(weight) => qvalue(weight.trim_ascii())?,
        None => 1000,
    };
    Some((name, weight))
}

/// RFC 9110 §12.4.2, in thousandths.
fn qvalue(weight: &[u8]) -> Option<u16> {
    let (b'q' | b'Q', [b'=', number @ ..]) = weight.split_first()? else {
        return None;
    };
    let (whole, digits) = match number {
        [whole] => (whole, &[][..]),
        [whole, b'.', digits @ ..] if digits.len() <= 3 => (whole, digits),
        _ => return None,
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let thousandths = digits.iter().chain(b"000").take(3);
    let fraction = thousandths.fold(0, |sum, digit| 10 * sum + u16::from(digit - b'0'));
    match whole {
        b'0' => Some(fraction),
        b'1' if fraction == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepted(fields: &[&[u8]]) -> Accepted {
        Accepted::of(fields.iter().copied())
    }

    /// The sets, best first, and `identity` where that may be sent.
    fn shown(accepted: Accepted) -> String {
        let set = |set: Vec<Coding>| {
            let tokens: Vec<_> = set.into_iter().map(Coding::token).collect();
            tokens.join("=")
        };
        let mut sets: Vec<String> = accepted.sets().map(set).collect();
        if accepted.identity {
            sets.push("identity".into());
        }
        sets.join(" ")
    }

    #[test]
    fn the_field_says_what_may_be_sent_and_what_is_liked_best() {
        for (field, expected) in [
            ("gzip, deflate, br, zstd", "br=zstd=gzip identity"),
            ("gzip", "gzip identity"),
            ("x-gzip", "gzip identity"),
            ("GZip", "gzip identity"),
            ("deflate", "identity"),
            ("", "identity"),
            ("identity", "identity"),
            ("br;q=0.5, gzip", "gzip br identity"),
            (
                "br;q=0.001, gzip;q=0.002, zstd;q=0.003",
                "zstd gzip br identity",
            ),
            ("gzip; q=1.000 ,br ;q=1.", "br=gzip identity"),
            ("gzip;Q=0.5", "gzip identity"),
            // Refused.
            ("gzip;q=0", "identity"),
            ("gzip;q=0.000, br", "br identity"),
            ("gzip;q=0, x-gzip", "identity"),
            ("gzip, gzip;q=0", "identity"),
            // What is liked less than identity.
            ("gzip;q=0.5, identity", "identity"),
            ("gzip;q=0.5, br, identity;q=0.8", "br identity"),
            ("gzip, identity", "gzip identity"),
            // Identity refused.
            ("identity;q=0", ""),
            ("*;q=0", ""),
            ("gzip, identity;q=0", "gzip"),
            ("gzip, *;q=0", "gzip"),
            ("*;q=0, identity;q=0.1", "identity"),
            // The others.
            ("*", "gzip zstd br identity"),
            ("br, *", "br gzip zstd identity"),
            ("gzip;q=0, *", "zstd br identity"),
            ("br;q=0.1, *;q=0.5", "gzip zstd identity"),
            ("*;q=0.5, identity;q=0", "gzip zstd br"),
            // Not a member of the list.
            ("gzip;q=2, br", "br identity"),
            ("gzip;q=1.001, br", "br identity"),
            ("gzip;q=0.1234, br", "br identity"),
            ("gzip;q=, br", "br identity"),
            ("gzip;q=-1, br", "br identity"),
            ("gzip;level=9, br", "br identity"),
            ("gzip;q=1;q=1, br", "br identity"),
            ("gzip q=0, br", "br identity"),
            (",, ;q=1, gzip,", "gzip identity"),
            ("gzip br", "identity"),
        ] {
            assert_eq!(shown(accepted(&[field.as_bytes()])), expected, "`{field}`");
        }
    }

    #[test]
    fn several_fields_are_one_list() {
        assert_eq!(shown(accepted(&[])), "identity");
        let two: [&[u8]; 2] = [b"gzip;q=0.5", b"\xff, br"];
        assert_eq!(shown(accepted(&two)), "br gzip identity");
        let two: [&[u8]; 2] = [b"gzip", b"identity;q=0"];
        assert_eq!(shown(accepted(&two)), "gzip");
    }

    #[test]
    fn fields_that_mean_the_same_are_equal() {
        let one = accepted(&[b"gzip;q=0.9, br;q=0.8, deflate"]);
        assert_eq!(one, accepted(&[b"br;q=0.1,gzip"]));
        assert_eq!(accepted(&[b"deflate"]), Accepted::IDENTITY);
        assert!(one.any() && !Accepted::IDENTITY.any());
    }

    proptest! {
        #[test]
        fn no_field_panics_and_nothing_is_accepted_that_is_not_named(
            field in proptest::collection::vec(any::<u8>().prop_filter("field bytes",
                |b| *b == b'\t' || *b >= b' ' && *b != 0x7f), 0..60),
        ) {
            let has = |word: &[u8]| field.to_ascii_lowercase().windows(word.len()).any(|w| w == word);
            for coding in accepted(&[&field]).sets().flatten() {
                prop_assert!(has(coding.token().as_bytes()) || has(b"*"));
            }
        }

        #[test]
        fn what_has_no_weight_is_not_sent(
            weights in proptest::collection::vec((0usize..5, 0u16..=1000), 0..8),
        ) {
            let names = ["br", "zstd", "gzip", "identity", "*"];
            let members: Vec<String> = weights
                .iter()
                .map(|&(name, weight)| format!("{};q={}.{:03}", names[name], weight / 1000, weight % 1000))
                .collect();
            let accepted = accepted(&[members.join(", ").as_bytes()]);
            for (slot, &(name, weight)) in weights.iter().enumerate() {
                if weight > 0 {
                    continue;
                }
                match names[name] {
                    "identity" => prop_assert!(!accepted.identity),
                    "*" => {}
                    token => prop_assert!(
                        accepted.sets().flatten().all(|coding| coding.token() != token),
                        "{slot}",
                    ),
                }
            }
        }
    }
}
