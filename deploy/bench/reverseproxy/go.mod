module reverseproxy

go 1.19
