//go:build race

package locktest

// RaceDetector reports whether the tests run with it.
const RaceDetector = true
