// Package docs is the folder of documents, of which the program itself shows one.
package docs

import _ "embed"

// Example is fwd.toml with every key, as "fwd config example" prints it.
//
//go:embed fwd.toml
var Example string
