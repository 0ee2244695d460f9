//go:build linux

package lab

import "github.com/vishvananda/netlink"

// loopbackUp brings up the loopback of this process's own namespace, for tests that use it beside the lab.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
