use std::process::ExitCode;

fn main() -> ExitCode {
    weft_cni::main()
}
