// Package uitest tests the page of "locker ui" in a browser. It is not in the same module as
// the command, so that nobody who installs the command depends on what drives the browser.
package uitest
