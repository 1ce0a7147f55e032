//! JSON objects with a fixed set of fields: an unknown, a repeated and a missing field are refused.
//!
//! `derive(Deserialize)` with `deny_unknown_fields` does the same with a reader of its own for each type, and another
//! one that takes an array for the object. One loop for all types makes glue 16 KB smaller, and refuses arrays.

use core::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, MapAccess, Visitor};

/// A type that [`read`] can read.
pub trait Fields: Sized {
    /// Names of the fields that have to be there, between blanks.
    const REQUIRED: &'static str;
    /// Names of the other fields, between blanks.
    const OPTIONAL: &'static str;

    /// What optional fields are where they are not there; what the others are does not matter.
    fn initial() -> Self;

    /// Takes the value of one of those fields.
    fn take<'de, M: MapAccess<'de>>(&mut self, field: &str, from: &mut M) -> Result<(), M::Error>;
}

/// Reads an object, field by field.
pub fn read<'de, T: Fields, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_map(Reader(PhantomData))
}

struct Reader<T>(PhantomData<T>);

impl<'de, T: Fields> Visitor<'de> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut from: M) -> Result<T, M::Error> {
        let mut value = T::initial();
        let mut seen = Seen { required: T::REQUIRED, optional: T::OPTIONAL, fields: 0 };
        while let Some(field) = from.next_key::<String>()? {
            seen.note(&field).map_err(M::Error::custom)?;
            value.take(&field, &mut from)?;
        }
        seen.complete().map_err(M::Error::custom)?;
        Ok(value)
    }
}

/// Which fields have been seen, as bits in the order of their names.
struct Seen {
    required: &'static str,
    optional: &'static str,
    fields: u32,
}

impl Seen {
    fn names(&self) -> impl Iterator<Item = (u32, &'static str)> + use<> {
        (0..32)
            .map(|n| 1 << n)
            .zip(self.required.split_ascii_whitespace().chain(self.optional.split_ascii_whitespace()))
    }

    fn note(&mut self, field: &str) -> Result<(), String> {
        let Some((bit, _)) = self.names().find(|(_, name)| *name == field) else {
            let printable = super::text::printable(field);
            return Err(format!("unknown field `{printable}`, expected one of {} {}", self.required, self.optional));
        };
        if self.fields & bit != 0 {
            return Err(format!("duplicate field `{field}`"));
        }
        self.fields |= bit;
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        let required = self.required.split_ascii_whitespace().count();
        match self.names().take(required).find(|(bit, _)| self.fields & bit == 0) {
            Some((_, name)) => Err(format!("missing field `{name}`")),
            None => Ok(()),
        }
    }
}

/// Reads one of a few words, and says which.
pub fn word<'de, D: Deserializer<'de>>(from: D, words: &'static str) -> Result<usize, D::Error> {
    struct Words(&'static str);
    impl Visitor<'_> for Words {
        type Value = usize;
        fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            write!(f, "one of {}", self.0)
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<usize, E> {
            let known = self.0.split_ascii_whitespace().position(|word| word == text);
            known.ok_or_else(|| E::custom(format_args!("a word that is not one of {}", self.0)))
        }
    }
    from.deserialize_str(Words(words))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]
mod tests {
    use crate::startup::{EnvFile, EnvFormat, Rlimit, Startup, Stream};

    const LEAST: &str = r#""version":1,"job":"j","nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","incarnation":"i","argv":["a"],"uid":1,"gid":2"#;

    fn startup(more: &str) -> Result<Startup, String> {
        serde_json::from_str(&format!("{{{LEAST}{more}}}")).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_written_is_read() {
        let text = r#", "cwd":"/","env_mode":"clear","env_files":[{"name":"env.a","format":"nul"}],"env":{"b":"c"},"groups":[3],
            "umask":"077","stdin":{"file":"f"},"stdout":{"file":"g","append":true},"stderr":{"fifo":"err"},
            "rlimits":{"core":{"soft":0,"hard":"unlimited"}},"links":{"/d":"e"},"passwd":true,"timeout_s":1,"grace_s":2.5,
            "kill_s":3e0"#;
        let one = startup(text).unwrap();
        let two: Startup = serde_json::from_slice(&serde_json::to_vec(&one).unwrap()).unwrap();
        assert_eq!(one, two);
        assert_ne!(one, startup("").unwrap());
        assert_eq!((two.uid, two.gid, two.groups.as_slice()), (1, 2, [3].as_slice()));
        assert_eq!((two.timeout_s, two.grace_s, two.kill_s), (1.0, 2.5, 3.0));
        assert_eq!(two.env_files.first().map(|f| (f.name.as_str(), f.format)), Some(("env.a", EnvFormat::Nul)));
        // Every name is known to the reader: a written one that it does not know would be refused, an unwritten one
        // missing.
        let names = serde_json::to_string(&two).unwrap();
        for name in
            <Startup as super::Fields>::REQUIRED.split(' ').chain(<Startup as super::Fields>::OPTIONAL.split(' '))
        {
            assert!(names.contains(&format!("\"{name}\":")), "{name}");
        }
    }

    #[test]
    fn optional_fields_have_defaults() {
        let least = startup("").unwrap();
        assert_eq!((least.umask.as_str(), least.kill_s, least.passwd, least.cwd), ("022", 10.0, false, None));
    }

    #[test]
    fn each_refusal_names_the_field() {
        for (text, why) in [
            (r#", "more":1"#, "unknown field `more`, expected one of version job nonce"),
            (r#", "uid":1"#, "duplicate field `uid`"),
            (r#", "passwd":true,"passwd":true"#, "duplicate field `passwd`"),
            (r#", "env":{"A":"1","B":"2","A":"3"}"#, "\"A\" stands twice"),
            (r#", "env_mode":"other""#, "not one of inherit clear"),
            (r#", "env_mode":7"#, "expected one of inherit clear"),
            (r#", "env_files":[["env.a","sh"]]"#, "expected an object"),
            (r#", "rlimits":{"core":{"soft":1}}"#, "missing field `hard`"),
        ] {
            let refused = startup(text);
            assert!(refused.as_ref().is_err_and(|e| e.contains(why)), "{text}: {refused:?}");
        }
        for name in <Startup as super::Fields>::REQUIRED.split(' ') {
            let others = serde_json::from_str::<serde_json::Map<_, _>>(&format!("{{{LEAST}}}")).unwrap();
            let others: serde_json::Map<_, _> = others.into_iter().filter(|(other, _)| other != name).collect();
            let without = serde_json::to_string(&others).unwrap();
            let refused = serde_json::from_str::<Startup>(&without).map_err(|e| e.to_string());
            let why = format!("missing field `{name}`");
            assert!(refused.as_ref().is_err_and(|e| e.contains(&why)), "{without}: {refused:?}");
        }
        assert!(serde_json::from_str::<EnvFile>(r#"["env.a","sh"]"#).is_err());
        assert!(serde_json::from_str::<Rlimit>(r#"[1,2]"#).is_err());
        assert!(serde_json::from_str::<Stream>("{}").is_ok());
    }
}
