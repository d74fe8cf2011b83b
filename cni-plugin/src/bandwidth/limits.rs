use crate::kernel::tc::TokenBucket;
use crate::protocol::conf::Conf;
use crate::protocol::error::{Code, Error, Result};
use crate::protocol::fields::Fields;

/// How long a packet may wait for its turn before it is dropped instead.
const LATENCY_US: f64 = 25_000.0;
const US_PER_S: f64 = 1e6;
/// `PSCHED_SHIFT` is 6: a tick of the packet scheduler is 64 ns.
const TICKS_PER_US: f64 = 1000.0 / 64.0;

/// Seen from the container: ingress is what it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub ingress: Option<TokenBucket>,
    pub egress: Option<TokenBucket>,
}

impl Limits {
    /// From the plugin's own fields; from `runtimeConfig.bandwidth` where none of
    /// them is there.
    pub fn parse(conf: &Conf) -> Result<Limits> {
        let fields = conf.fields();
        if ["ingressRate", "ingressBurst", "egressRate", "egressBurst"]
            .iter()
            .any(|key| fields.get(key).is_some())
        {
            return Limits::of(&fields);
        }
        let runtime = fields.object("runtimeConfig")?;
        let runtime = runtime.map(|runtime| runtime.object("bandwidth")).transpose()?.flatten();
        runtime.map_or_else(|| Ok(Limits::default()), |runtime| Limits::of(&runtime))
    }

    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }

    fn of(fields: &Fields<'_>) -> Result<Limits> {
        Ok(Limits {
            ingress: limit(fields, "ingressRate", "ingressBurst")?,
            egress: limit(fields, "egressRate", "egressBurst")?,
        })
    }
}

/// Bits a second and bits, both or neither.
fn limit(fields: &Fields<'_>, rate_key: &str, burst_key: &str) -> Result<Option<TokenBucket>> {
    let (rate, burst) = (bits(fields, rate_key)?, bits(fields, burst_key)?);
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(missing(fields, rate_key, burst_key)),
        (_, 0) => Err(missing(fields, burst_key, rate_key)),
        (1..8, _) => Err(fields.wrong(rate_key, "at least 8 bits a second")),
        _ if burst / 8 >= u64::from(u32::MAX) => Err(fields.wrong(burst_key, "less than 4 GB, in bits")),
        _ => {
            match bucket(rate / 8, (burst / 8) as u32) {
                // The kernel takes no bucket that fills in no time.
                TokenBucket { buffer: 0, .. } => Err(fields
                    .wrong(burst_key, format_args!("more than {rate_key} lets through in a microsecond"))),
                bucket => Ok(Some(bucket)),
            }
        }
    }
}

fn bits(fields: &Fields<'_>, key: &str) -> Result<u64> {
    let Some(value) = fields.get(key) else { return Ok(0) };
    value.as_u64().ok_or_else(|| fields.wrong(key, "a number of bits, 0 or more"))
}

fn missing(fields: &Fields<'_>, key: &str, other: &str) -> Error {
    let msg = format!("{}: missing: if {other} is set, {key} has to be, too", fields.place(key));
    Error::new(Code::NetworkConfig, msg)
}

/// Bytes a second and bytes. Rounded as the reference plugin rounds
/// (ifb_creator.go), so that each accepts in CHECK what the other made.
fn bucket(rate: u64, burst: u32) -> TokenBucket {
    let fills_in = f64::from(burst) * US_PER_S / rate as f64;
    let waiting = rate as f64 * LATENCY_US / US_PER_S;
    TokenBucket {
        rate,
        limit: (waiting as u32).saturating_add(burst),
        buffer: (fills_in.trunc() * TICKS_PER_US) as u32,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn limits_are_those_of_the_reference_plugin() {
        // Rate, limit and buffer of its netlink messages.
        for (rate, burst, expected) in [
            (8, 8, (1, 1, 15_625_000)),
            (20_000_000, 1_000_000, (2_500_000, 187_500, 781_250)),
            (123_456_789, 98_765, (15_432_098, 398_147, 12_484)),
            (1_u64 << 40, 1_u64 << 30, (1 << 37, 3_570_191_564, 15_250)),
        ] {
            let conf = json!({ "ingressRate": rate, "ingressBurst": burst });
            let bucket = limits(&conf).unwrap().ingress.unwrap();
            assert_eq!((bucket.rate, bucket.limit, bucket.buffer), expected, "{conf}");
        }
    }

    #[test]
    fn its_own_fields_win_over_those_of_the_runtime() {
        let runtime = json!({ "bandwidth": { "egressRate": 800, "egressBurst": 800 } });
        let of_runtime = limits(&json!({ "runtimeConfig": runtime })).unwrap();
        assert_eq!((of_runtime.ingress, of_runtime.egress), (None, Some(bucket(100, 100))));
        let own = json!({ "ingressRate": 80, "ingressBurst": 80, "runtimeConfig": runtime });
        assert_eq!(limits(&own).unwrap(), Limits { ingress: Some(bucket(10, 10)), egress: None });
        let none = json!({ "ingressRate": 0, "runtimeConfig": runtime });
        assert!(limits(&none).unwrap().is_none());
    }

    #[test]
    fn errors_name_the_field_and_what_is_accepted() {
        for (conf, part) in [
            (json!({ "ingressRate": 8 }), "ingressBurst: missing: if ingressRate is set"),
            (json!({ "egressBurst": 8 }), "egressRate: missing"),
            (json!({ "egressRate": 7, "egressBurst": 8 }), "egressRate: 7: expected at least 8"),
            (json!({ "ingressRate": 8, "ingressBurst": 34_359_738_360_u64 }), "expected less than 4 GB"),
            (
                json!({ "ingressRate": 80_000_000, "ingressBurst": 72 }),
                "expected more than ingressRate lets through",
            ),
            (json!({ "ingressRate": -1 }), "ingressRate: -1: expected a number of bits"),
            (
                json!({ "runtimeConfig": { "bandwidth": { "ingressRate": "x" } } }),
                "runtimeConfig.bandwidth.ingressRate: \"x\"",
            ),
        ] {
            let error = limits(&conf).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    fn limits(conf: &Value) -> Result<Limits> {
        let mut conf = conf.clone();
        conf["name"] = "n".into();
        Limits::parse(&Conf::parse(conf.to_string().as_bytes(), "test")?)
    }
}
