// Package release tests what users get. It tags a clone of this repository as the next release would be,
// and installs the command and builds a program from the tags: without go.work, with a module cache of
// its own, in which nothing of Locker is found beforehand. Only what is committed is tested.
package release
