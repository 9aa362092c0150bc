//! From what the rooms count to the rows of the report.

use crate::convert::{NotCarried as Item, Tally};
use crate::report::document::{NotCarried, RingFeature, RunInputs};
use crate::uring::Features;
