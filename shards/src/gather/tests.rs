//! Gathers with scripted answers.
