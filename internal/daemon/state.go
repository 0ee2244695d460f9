package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"

	"fwd/identity"
)

// state is what the daemon itself remembers between runs, in the file
// `daemon`: nothing in it is secret, and losing it costs no access.
type state struct {
	mu   sync.Mutex
	path string
	stateFile
}

type stateFile struct {
	// Port is the UDP and TCP port to listen on, drawn once: a port that stays
	// lets a router keep its mapping and a person forward it by hand.
	Port int `json:"port,omitempty"`
	// Locals: the local address that a service was last connected at without
	// one being asked for.
	Locals map[string]string `json:"locals,omitempty"`
	// Kinds: what a service was when last met, "tcp", "udp" or both, where it is not
	// TCP alone.
	Kinds map[string][]string `json:"kinds,omitempty"`
	// Allowed and Denied are what `fwd allow` and `fwd deny` said, by service;
	// they outlive restarts, and a deny beats everything.
	Allowed map[string][]string `json:"allowed,omitempty"`
	Denied  map[string][]string `json:"denied,omitempty"`
	// Kept is what `fwd up` runs beside fwd.toml.
	Kept kept `json:"kept,omitzero"`
	// RelayMonth and RelayBytes are what this relay has used of a month's quota.
	RelayMonth string `json:"relay_month,omitempty"`
	RelayBytes int64  `json:"relay_bytes,omitempty"`
}

func openState(path string) (*state, error) {
	s := &state{path: path}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", path, err)
	default:
		// A deny that cannot be read must not turn into an allow.
		// Nor one under a name that we do not know.
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&s.stateFile); err != nil {
			return nil, usage("repair it, or move it away and repeat your allow and deny commands",
				"%s is damaged: %v", path, err)
		}
		s.Allowed, s.Denied = foldKinds(s.Allowed), foldKinds(s.Denied)
	}
	return s, nil
}

// foldKinds puts the lists of "dns/udp" and "dns/tcp", which were written once and meant nothing, into that of dns.
func foldKinds(lists map[string][]string) map[string][]string {
	folded := map[string][]string{}
	for _, key := range slices.Sorted(maps.Keys(lists)) {
		name := withoutKind(key)
		for _, who := range lists[key] {
			folded[name] = append(without(folded[name], who), who)
		}
	}
	return folded
}

// change applies f and has it on disk before it returns. What changes nothing is not written: it is to succeed on a full
// disk, too.
func (s *state) change(f func(*stateFile)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.clone()
	f(&next)
	data, err := next.encode()
	if err != nil {
		return err
	}
	if old, err := s.encode(); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := identity.WriteFile(s.path, data, 0o600); err != nil {
		return fmt.Errorf("keep the daemon's state: %w", err)
	}
	s.stateFile = next
	return nil
}

// encode is the file's text.
func (f stateFile) encode() ([]byte, error) {
	data, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return nil, fmt.Errorf("encode the daemon's state: %w", err)
	}
	return append(data, '\n'), nil
}

// get hands f the state to read.
func (s *state) get(f func(stateFile)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.stateFile)
}

func (s *state) clone() stateFile {
	c := s.stateFile
	c.Locals = map[string]string{}
	for k, v := range s.Locals {
		c.Locals[k] = v
	}
	c.Kinds = cloneLists(s.Kinds)
	c.Allowed, c.Denied = cloneLists(s.Allowed), cloneLists(s.Denied)
	c.Kept = s.Kept.clone()
	return c
}

func cloneLists(m map[string][]string) map[string][]string {
	c := map[string][]string{}
	for k, v := range m {
		c[k] = slices.Clone(v)
	}
	return c
}
