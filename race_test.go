//go:build race

package locker_test

const raceDetector = true
