//go:build !linux

package node

import (
	"context"
	"sync"
)

// interfaceChanges: nobody tells, so the interfaces are looked at each tick.
func interfaceChanges(context.Context, *sync.WaitGroup) <-chan struct{} { return nil }

// gateways are not known here; a change of router shows by its addresses.
func gateways() []string { return nil }
