//! JSON as Go's `encoding/json` takes it: keys match without regard to case,
//! unknown keys are ignored, the last of several equal keys wins.
