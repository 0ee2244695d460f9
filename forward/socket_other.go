//go:build !unix

package forward

import "net"

// listenClosed: who may connect is a matter of the folder here.
func listenClosed(path string) (net.Listener, error) { return net.Listen("unix", path) }
