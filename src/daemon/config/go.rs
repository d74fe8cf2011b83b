//! Command lines as Go's `flag` package reads them.

use std::ffi::OsString;

use clap::builder::TypedValueParser;

/// Go's spellings of a boolean (`strconv.ParseBool`), as flannel's flags take
/// them.
pub fn go_bool() -> impl TypedValueParser<Value = bool> {
    clap::builder::NonEmptyStringValueParser::new().try_map(|text| match text.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("accepted are 1, t, T, TRUE, true, True, 0, f, F, FALSE, false, False"),
    })
}

/// Go's flags take one dash or two; clap takes two. `-iface=eth0` becomes
/// `--iface=eth0`; single letters and whatever follows `--` stay.
pub fn double_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut rest = false;
    for arg in args {
        let text = arg.to_string_lossy();
        rest = rest || text == "--";
        let mut chars = text.chars();
        let go_flag = chars.next() == Some('-')
            && chars.next().is_some_and(|c| c.is_ascii_alphabetic())
            && chars.next().is_some_and(|c| c != '=');
        if go_flag && !rest {
            out.push(format!("-{text}").into());
        } else {
            out.push(arg);
        }
    }
    out
}
