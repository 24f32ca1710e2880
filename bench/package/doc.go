// Package deb tests the Debian package and its unit as an operator meets them: installed, restarted under load, killed,
// upgraded and purged on a machine with a real systemd.
//
// The machine is a minimal Debian that systemd-nspawn boots from a folder, with a network namespace beside it for clients and
// pods; it is discarded afterwards. That needs root and is asked for by SALLYPORT_PACKAGE=required, as "make package-test"
// does. What of the unit and the package can be checked without a machine is checked always.
package deb
