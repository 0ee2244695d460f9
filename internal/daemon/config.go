package daemon

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"fwd/forward"
	"fwd/forward/session"
	"fwd/identity"
	"fwd/internal/node"
	"fwd/relaynode"
)

// A config is fwd.toml: what `fwd up` and the service run, in words that mean
// the same as on the command line. fwd reads it and never writes it. It is
// strict: a key that does not exist is a mistake, told with its line, and so is
// a value that no command would take. docs/fwd.toml shows every key.
type config struct {
	// Name and InviteFile are for a machine that is in no network yet.
	Name       nameWord        `toml:"name"`
	InviteFile string          `toml:"invite_file"` // beside fwd.toml unless the path is whole
	Port       int             `toml:"port"`        // UDP and TCP, of a machine that is no relay; default: drawn once
	Announce   []announceWord  `toml:"announce"`    // where others reach that port: HOST[:PORT]
	Metrics    metricsWord     `toml:"metrics"`     // PORT of loopback or ADDR:PORT; default none
	Strict     bool            `toml:"strict"`      // no new connections here while the owner is silent for 72 h
	Log        logConfig       `toml:"log"`
	Limits     limitsConfig    `toml:"limits"`
	Relay      *relayConfig    `toml:"relay"` // nil: this machine is none
	Expose     []exposeConfig  `toml:"expose"`
	Connect    []connectConfig `toml:"connect"`
	Socks      []socksConfig   `toml:"socks"`
}

type logConfig struct {
	Level  levelWord  `toml:"level"`  // default info
	Format formatWord `toml:"format"` // text, json; default text
}

// limitsConfig bounds what connections that outlive an outage may take.
type limitsConfig struct {
	Hold   spanWord `toml:"hold"`   // default session.DefaultHold
	Memory sizeWord `toml:"memory"` // default session.DefaultBudget
}

func (l limitsConfig) hold() time.Duration { return cmp.Or(l.Hold.Duration, session.DefaultHold) }

type relayConfig struct {
	Listen   []listenWord   `toml:"listen"`
	Announce []announceWord `toml:"announce"`
	Uses     int            `toml:"uses"`          // of the first invite, where it makes the network
	PerPeer  sizeWord       `toml:"rate_per_peer"` // a second; 0: no limit
	Total    sizeWord       `toml:"rate_total"`    // a second
	Monthly  sizeWord       `toml:"monthly"`
}

type exposeConfig struct {
	Target targetWord `toml:"target"`
	Name   nameWord   `toml:"name"`
	Allow  []string   `toml:"allow"`
	Hold   spanWord   `toml:"hold"` // at most limits.hold
}

type connectConfig struct {
	Service serviceWord `toml:"service"`
	Local   localWord   `toml:"local"`
	Path    pathWord    `toml:"path"`
}

type socksConfig struct {
	Local socksWord `toml:"local"` // default DefaultSocks
}

// maxConfig: a thousand services of a hundred bytes, ten times over.
const maxConfig = 1 << 20

// readConfig reads and checks the file. The data is returned to tell later
// whether the file has changed.
func readConfig(path string) (*config, []byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, usage(exampleHint(path), "there is no %s", path)
	case err == nil && info.Size() > maxConfig:
		return nil, nil, usage("", "%s has %d bytes; at most %d are read", path, info.Size(), maxConfig)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, usage("name a file that this user can read", "read the configuration: %v", err)
	}
	c, err := parseConfig(data)
	if err != nil {
		return nil, data, usage(checkHint(path), "%s", located(path, err))
	}
	if c.InviteFile != "" && !filepath.IsAbs(c.InviteFile) {
		c.InviteFile = filepath.Join(filepath.Dir(path), c.InviteFile)
	}
	return c, data, nil
}

func exampleHint(path string) string {
	hint := "fwd config example > " + path
	if dir := filepath.Dir(path); !isFolder(dir) {
		hint = "mkdir -p " + dir + " && " + hint
	}
	return hint
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func checkHint(path string) string { return "fwd config check " + path }

// parseConfig reads fwd.toml's text. Its error has a line for each mistake, which begins with the file's line where that
// is known: "7: …".
func parseConfig(data []byte) (*config, error) {
	var wrong []string
	for {
		c, mistakes, line := decodeConfig(data)
		wrong = append(wrong, mistakes...)
		if without := withoutLine(data, line); without != nil && len(wrong) < maxMistakes {
			data = without // the decoder stops at a wrong value, and there may be more
			continue
		}
		if len(wrong) == 0 {
			return c, c.check()
		}
		slices.SortStableFunc(wrong, func(a, b string) int { return cmp.Compare(lineOf(a), lineOf(b)) })
		return nil, errors.New(strings.Join(wrong, "\n"))
	}
}

// maxMistakes is about how many are told of: more is another kind of file.
const maxMistakes = 20

// lineOf is the line with which a mistake begins; 0: none.
func lineOf(mistake string) int {
	number, _, _ := strings.Cut(mistake, ":")
	line, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return line
}

// decodeConfig is one run of the decoder; at is the line of a value at which it stopped.
func decodeConfig(data []byte) (c *config, mistakes []string, at int) {
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	c = new(config)
	err := dec.Decode(c)
	var strict *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		for _, e := range strict.Errors {
			line, _ := e.Position()
			mistakes = append(mistakes, fmt.Sprintf("%d: there is no key %q", line, strings.Join(e.Key(), ".")))
		}
	case errors.As(err, &wrong):
		at, _ = wrong.Position()
		mistakes = []string{fmt.Sprintf("%d: %s", at, inWords(wrong))}
	case err != nil:
		mistakes = []string{strings.TrimPrefix(err.Error(), "toml: ")}
	}
	return c, mistakes, at
}

// ofType is how the decoder tells that a value is of another kind than its key's.
var ofType = regexp.MustCompile(`^toml: cannot decode TOML .* of type (\S+)$`)

// inWords is a mistake as the file's author is told it.
func inWords(e *toml.DecodeError) string {
	kind := ofType.FindStringSubmatch(e.Error())
	if kind == nil {
		return strings.TrimPrefix(e.Error(), "toml: ")
	}
	want := "a text in quotes"
	switch {
	case kind[1] == "int":
		want = "a number without quotes"
	case kind[1] == "bool":
		want = "true or false"
	case strings.HasPrefix(kind[1], "[]"):
		want = `a list of texts: ["…"]`
	}
	return fmt.Sprintf("%s wants %s", strings.Join(e.Key(), "."), want)
}

// withoutLine is data with that line empty, if it holds no more than a value: what is TOML before and after. Else nil.
func withoutLine(data []byte, line int) []byte {
	lines := bytes.Split(data, []byte("\n"))
	if line < 1 || line > len(lines) || bytes.HasPrefix(bytes.TrimSpace(lines[line-1]), []byte("[")) {
		return nil
	}
	lines[line-1] = nil
	without := bytes.Join(lines, []byte("\n"))
	for _, text := range [][]byte{data, without} {
		if toml.Unmarshal(text, new(map[string]any)) != nil {
			return nil
		}
	}
	return without
}

// located puts the file's name before each line of a parse error.
func located(path string, err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		if lineOf(l) > 0 {
			lines[i] = path + ":" + l
		} else {
			lines[i] = path + ": " + l
		}
	}
	return strings.Join(lines, "; ")
}

// check finds what only shows when the parts are seen together; its error has a line for each mistake.
func (c *config) check() error {
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if c.Port < 0 || c.Port > 65535 {
		bad("port is %d: a port is from 1 to 65535", c.Port)
	}
	names := map[string]bool{}
	for _, e := range c.Expose {
		if e.Target.text == "" {
			bad("an [[expose]] has no target")
			continue
		}
		if most := c.Limits.hold(); e.Hold.Duration > most {
			bad("the [[expose]] of %s wants hold %s, more than [limits] has: %s", e.Target.text, plainDuration(e.Hold.Duration), plainDuration(most))
		}
		key := exposeKey(e.request())
		switch {
		case identity.CheckName(exposeName(e.request())) != nil:
			bad("the [[expose]] of %s needs a name", e.Target.text)
		case names[key]:
			bad("[[expose]] %q stands there twice", key)
		}
		names[key] = true
	}
	locals, auto := map[string]bool{}, map[string]bool{}
	for _, f := range c.Connect {
		local, err := forward.ParseLocal(f.Local.text)
		switch {
		case f.Service.text == "":
			bad("a [[connect]] has no service")
			continue
		case err != nil:
			bad("%w", err)
			continue
		case local.Auto() && auto[f.Service.text]:
			bad("[[connect]] %q stands there twice; give each a local address", f.Service.text)
		case local.Auto():
			auto[f.Service.text] = true
		}
		for i := range local.Ports() {
			one := local.At(i).String()
			if locals[one] && (local.Network() != "tcp" || local.Port() != 0) {
				bad("two [[connect]] want %s", one)
			}
			locals[one] = true
		}
	}
	for _, s := range c.Socks { // of one port each
		local, err := s.request().local()
		switch {
		case err != nil:
			bad("%w", err)
			continue
		case local.Port() == 0 && local.Network() == "tcp" && locals["socks"]:
			bad("a [[socks]] without a port of its own stands there twice")
			continue
		case local.Port() == 0 && local.Network() == "tcp":
			locals["socks"] = true
			continue
		case locals[local.String()]:
			bad("a [[socks]] wants %s, and so does another entry", local)
		}
		locals[local.String()] = true
	}
	if r := c.Relay; r != nil {
		if r.Uses < 0 {
			bad("relay.uses is %d: a code is for one machine or more", r.Uses)
		}
		if err := r.limits().Check(); err != nil {
			bad("%w", err)
		}
	}
	return errors.Join(wrong...)
}

// pathsAtOdds finds [[connect]] tables of one machine by paths that exclude each other: the second one would be refused
// when it runs. A short name's machine is known from a roster alone, if there is one.
func (c *config) pathsAtOdds(roster *identity.Sealed) error {
	machine := func(word string) string {
		if roster != nil {
			if _, p, err := roster.Resolve(word); err == nil {
				e, _ := roster.Entry(p)
				return e.Name
			}
		}
		service, machine, _ := strings.Cut(strings.TrimSuffix(word, ".fwd"), ".")
		return cmp.Or(machine, "the machine of "+service)
	}
	var wrong []error
	first := map[string]connectConfig{} // to each machine, of those that are particular
	for _, f := range c.Connect {
		kind, _ := node.ParsePathKind(f.Path.text)
		at := machine(strings.ToLower(f.Service.text))
		other, ok := first[at]
		switch {
		case kind == node.Auto:
		case !ok:
			first[at] = f
		case other.Path != f.Path:
			wrong = append(wrong, fmt.Errorf("[[connect]] %q wants path %s and %q path %s: all connections to %s share its path",
				other.Service.text, other.Path.text, f.Service.text, f.Path.text, at))
		}
	}
	return errors.Join(wrong...)
}

func (r *relayConfig) limits() relaynode.Limits {
	if r == nil {
		return relaynode.Limits{}
	}
	return relaynode.Limits{PerPeer: r.PerPeer.bytes, Total: r.Total.bytes, Monthly: r.Monthly.bytes}
}

func (r *relayConfig) request(name nameWord) RelayRequest {
	req := RelayRequest{Uses: r.Uses, Name: name.text}
	for _, w := range r.Listen {
		req.Listen = append(req.Listen, w.text)
	}
	for _, w := range r.Announce {
		req.Announce = append(req.Announce, w.text)
	}
	return req
}

func (e exposeConfig) request() ExposeRequest {
	return ExposeRequest{Target: e.Target.text, Name: e.Name.text, Allow: slices.Clone(e.Allow), Hold: e.Hold.Duration}
}

func (f connectConfig) request() ConnectRequest {
	return ConnectRequest{Name: f.Service.text, Local: f.Local.text, Path: f.Path.text}
}

func (s socksConfig) request() SocksRequest { return SocksRequest{Local: s.Local.text} }

// Checked is what `fwd config check` answers.
type Checked struct {
	Path     string `json:"path"`
	Exposes  int    `json:"exposes"`
	Connects int    `json:"connects"`
	Relay    bool   `json:"relay"`
	Socks    int    `json:"socks"`
}

// CheckConfig reads a fwd.toml as `fwd up` would. path "": the home's own.
func CheckConfig(home Home, path string) (Checked, error) {
	if path == "" {
		path = home.Config
	}
	c, _, err := readConfig(path)
	var f *Failure
	if errors.As(err, &f) && f.Hint == checkHint(path) {
		f.Hint = "" // it is what was just run
	}
	if err != nil {
		return Checked{}, err
	}
	roster, _ := rosterOf(home) // without one, and where it cannot be read, the file says less
	if err := c.pathsAtOdds(roster); err != nil {
		return Checked{}, usage("", "%s", located(path, err))
	}
	if c.Relay != nil {
		if _, err := planRelay(c.Relay.request(c.Name)); err != nil {
			return Checked{}, usage(`under [relay]: announce = ["HOST"]`, "%s: %v", path, err)
		}
	}
	return Checked{Path: path, Exposes: len(c.Expose), Connects: len(c.Connect), Socks: len(c.Socks), Relay: c.Relay != nil}, nil
}

// A word of the file is read by the parser of the command that takes it, so that
// the file and the command line agree; a mistake gets its line. (They are
// structs because go-toml parses no text into what is a string already.)
type word[K interface{ check(string) error }] struct{ text string }

func (w *word[K]) UnmarshalText(b []byte) error {
	w.text = string(b)
	var kind K
	return kind.check(w.text)
}

type (
	nameWord     = word[aName]
	serviceWord  = word[aService]
	targetWord   = word[aTarget]
	localWord    = word[aLocal]
	pathWord     = word[aPath]
	socksWord    = word[aSocks]
	listenWord   = word[aListen]
	announceWord = word[anAnnounce]
	formatWord   = word[aFormat]
	metricsWord  = word[aMetrics]

	aName      struct{}
	aService   struct{}
	aTarget    struct{}
	aLocal     struct{}
	aPath      struct{}
	aSocks     struct{}
	aListen    struct{}
	anAnnounce struct{}
	aFormat    struct{}
	aMetrics   struct{}
)

func (aName) check(s string) error { return identity.CheckName(s) }

// check: nas, nas.nas-box or nas.nas-box.fwd; which there is the roster knows.
func (aService) check(s string) error {
	service, machine, long := strings.Cut(strings.TrimSuffix(s, ".fwd"), ".")
	if err := identity.CheckName(service); err != nil || !long {
		return err
	}
	return identity.CheckName(machine)
}

func (aTarget) check(s string) error {
	_, err := forward.ParseTarget(s)
	return err
}

func (aLocal) check(s string) error {
	local, err := forward.ParseLocal(s)
	if err == nil && local.Stdio() {
		return fmt.Errorf("local address %q: is for one connection on a command's standard input and output", s)
	}
	return err
}

func (aSocks) check(s string) error {
	_, err := SocksRequest{Local: s}.local()
	return err
}

func (aPath) check(s string) error {
	_, err := node.ParsePathKind(s)
	return err
}

func (aListen) check(s string) error {
	_, err := listenAddrs(s)
	return err
}

func (anAnnounce) check(s string) error {
	_, err := announceAddrs(s)
	return err
}

func (aMetrics) check(s string) error {
	_, err := metricsAddr(s)
	return err
}

func (aFormat) check(s string) error {
	if s != "text" && s != "json" {
		return fmt.Errorf("log format %q: text or json", s)
	}
	return nil
}

type levelWord struct{ slog.Level }

func (w *levelWord) UnmarshalText(b []byte) error {
	if w.Level.UnmarshalText(b) != nil || strings.ContainsAny(string(b), "+-") {
		return fmt.Errorf("log level %q: debug, info, warn or error", b)
	}
	return nil
}

type spanWord struct{ time.Duration }

func (w *spanWord) UnmarshalText(b []byte) (err error) {
	if w.Duration, err = ParseSpan(string(b)); err != nil {
		return fmt.Errorf("%q: %w", b, err)
	}
	return nil
}

// ParseSpan reads Go's durations and days: 90s, 2h, 7d. Zero is none: it would be the default, which is seldom what
// somebody means who writes 0.
func ParseSpan(text string) (d time.Duration, err error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(text)
	}
	switch {
	case err != nil || d < 0:
		return 0, errors.New("a duration is written 30s, 10m, 2h or 7d")
	case d == 0:
		return 0, errors.New("a duration is more than 0; for the default leave it out")
	}
	return d, nil
}

type sizeWord struct{ bytes int64 }

func (w *sizeWord) UnmarshalText(b []byte) (err error) {
	w.bytes, err = parseSize(string(b))
	return err
}

// sizeUnits are read longest first; B alone is the last.
var sizeUnits = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// parseSize reads 256MiB, 1.5GB, 0.
func parseSize(text string) (int64, error) {
	bad := fmt.Errorf("size %q: is written 500kB, 20MB, 256MiB, 1.5TB; 0 is no limit", text)
	unit := 0.0
	number := text
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(text, u.name); ok {
			number, unit = strings.TrimSpace(n), u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.Trim(number, "0123456789.") != "" || v*unit > math.MaxInt64/2 || unit == 0 && v != 0 {
		return 0, bad
	}
	return int64(v * unit), nil
}
