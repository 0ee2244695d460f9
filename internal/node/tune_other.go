//go:build !linux

package node

// tuneSocket does nothing: other systems let no program choose the control of congestion.
func tuneSocket(uintptr) {}
