// Package systest has the tests of the library that need a whole cluster, faults, or time:
// they see it as a program does. The tests of single calls are beside the library.
package systest
